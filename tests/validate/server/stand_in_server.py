"""What a vLLM server says over HTTP, without a model behind it: for what is wrong with a server."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class StandIn:
    """Answers each prompt with token 7; a round of two drafts, one of them accepted, per token."""

    url: str = ""
    models: list[dict[str, Any]] = field(
        default_factory=lambda: [{"id": "target", "max_model_len": 64}]
    )
    token: str | None = None
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Path to status and body, instead of the right ones."""
    foreign_tokens: int = 0
    """Of others' requests, with each of ours."""
    uncounted: bool = False
    missing_tokens: int = 0
    drafts_per_round: int = 2
    speculates: bool = True
    dies: bool = False
    """When it is asked for tokens."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    requests: int = 0
    rounds: int = 0

    def answer(self, path: str, body: dict[str, Any] | None, token: str | None) -> tuple[int, str]:
        if self.token is not None and token != f"Bearer {self.token}":
            return 401, "Unauthorized"
        if path in self.answers:
            return self.answers[path]
        if path == "/metrics":
            return 200, self._metrics()
        if path == "/version":
            return 200, '{"version": "0.32.0"}'
        if path == "/v1/models":
            return 200, json.dumps({"data": self.models})
        assert path == "/v1/completions"
        assert body is not None
        return 200, json.dumps({"choices": self._complete(body)})

    def _complete(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        self.bodies.append(body)
        prompts, length = body["prompt"], body["max_tokens"] - self.missing_tokens
        if not self.uncounted:
            self.tokens += length * len(prompts) + self.foreign_tokens
            self.requests += len(prompts)
            self.rounds += length * len(prompts)
        choices = [{"index": i, "token_ids": [7] * length} for i in range(len(prompts))]
        return choices[::-1]

    def _metrics(self) -> str:
        counts = {
            ("generation_tokens_total", ""): self.tokens,
            ("request_success_total", ',finished_reason="length"'): self.requests,
        }
        if self.speculates:
            drafted = self.rounds * self.drafts_per_round
            counts |= {
                ("spec_decode_num_drafts_total", ""): self.rounds,
                ("spec_decode_num_draft_tokens_total", ""): drafted,
                ("spec_decode_num_accepted_tokens_total", ""): self.rounds,
                ("spec_decode_num_accepted_tokens_per_pos_total", ',position="0"'): self.rounds,
                ("spec_decode_num_accepted_tokens_per_pos_total", ',position="1"'): 0,
            }
        return "".join(
            f'vllm:{name}{{engine="{engine}"{labels}}} {value if engine == 0 else 0}.0\n'
            for engine in (0, 1)  # the second one does nothing
            for (name, labels), value in counts.items()
        )


@contextmanager
def stand_in() -> Iterator[StandIn]:
    server_says = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not server_says.dies:  # else the connection ends
                self._answer(body)

        def _answer(self, body: dict[str, Any] | None) -> None:
            status, text = server_says.answer(self.path, body, self.headers.get("Authorization"))
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        server_says.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        try:
            yield server_says
        finally:
            httpd.shutdown()
            thread.join()
