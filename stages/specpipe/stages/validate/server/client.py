"""Client of a running vLLM server: its API and its counters.

Legend: B prompts, G groups of prompts, K draft tokens.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specpipe.schemas.errors import ConfigError, StoreError, ValidationError
from specpipe.schemas.extras import install_hint
from specpipe.schemas.records.served import Counters
from specpipe.schemas.settings.stages import ServerConfig

if TYPE_CHECKING:
    import httpx

TOKEN = "SPECPIPE_SERVE_TOKEN"
"""Environment variable of the server's bearer token."""

CONNECT_SECONDS, ANSWER_SECONDS, COUNT_SECONDS = 10.0, 1800.0, 10.0
POLL_SECONDS = 0.05
SMALLEST_NUMBER_OF_GROUPS = 16
LARGEST_GROUP = 32
"""Prompts in flight at once."""
MOST_SHOWN = 500

_DRAFTS = "vllm:spec_decode_num_drafts_total"
_DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
_ACCEPTED_AT = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
_GENERATED = "vllm:generation_tokens_total"
_REQUESTS = "vllm:request_success_total"
_OF_DRAFTS = {_DRAFTS, _DRAFT_TOKENS, _ACCEPTED, _ACCEPTED_AT}
_OF_SERVER = {_GENERATED, _REQUESTS}


@dataclass(frozen=True, slots=True)
class Totals:
    """The server's counters since its start, over all of its engines."""

    speculative: Counters
    generated_tokens: int
    finished_requests: int


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that were in flight together, and the increase of the counters meanwhile."""

    prompts: slice
    counters: Counters


@dataclass(frozen=True, slots=True)
class ServerDecoded:
    """Outputs of all prompts at one temperature."""

    temperature: float
    output_ids: list[list[int]]
    further_ids: list[list[int]]
    """The K - 1 tokens after each output, of which a round that the output's end cuts drafts some:
    the counters hold whole rounds."""
    groups: list[Group]
    seconds: float


class Server:
    """An OpenAI-compatible server of vLLM that decodes speculatively.

    Raises ConfigError where it is none, refuses a request, or serves others meanwhile; StoreError
    where it cannot be reached or fails.
    """

    def __init__(self, client: "httpx.Client", url: str, model: str | None) -> None:
        self.url = url
        self._client = client
        self.model, self.longest = self._served(model)
        self.version = str(self._json("GET", "/version").get("version", "unknown"))
        self.num_draft_tokens = len(self.totals().speculative.accepted_per_position)

    @classmethod
    @contextmanager
    def connect(cls, config: ServerConfig) -> "Iterator[Server]":
        """The server at `serve_url`, with the token of the environment."""
        try:
            import httpx
        except ImportError:
            raise ConfigError(f"--serve-url needs httpx: {install_hint('server')}") from None
        assert config.serve_url is not None
        url = config.serve_url.rstrip("/").removesuffix("/v1")
        headers = _authorization()
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            client = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigError(f"--serve-url {url}: {error}") from None
        with client:
            yield cls(client, url, config.serve_model)

    def decode(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, temperature: float
    ) -> ServerDecoded:
        """Continue every prompt by exactly so many tokens, a group of prompts after the other."""
        outputs: list[list[int]] = []
        further: list[list[int]] = []
        groups = []
        seconds = 0.0
        for at in _slices(len(prompts)):
            start = time.monotonic()
            written, counters = self._counted(prompts[at], num_tokens, temperature)
            seconds += time.monotonic() - start
            groups.append(Group(at, counters))
            outputs += written
            if self.num_draft_tokens > 1:
                texts = [[*prompt, *out] for prompt, out in zip(prompts[at], written, strict=True)]
                further += self._counted(texts, self.num_draft_tokens - 1, temperature)[0]
            else:
                further += [[] for _ in written]
        return ServerDecoded(temperature, outputs, further, groups, seconds)

    def totals(self) -> Totals:
        """Read the counters."""
        sums: Counter[str] = Counter()
        positions: Counter[int] = Counter()
        for name, labels, value in self._samples():
            if name in _OF_SERVER or name in _OF_DRAFTS:
                sums[name] += round(value)
            if name == _ACCEPTED_AT:
                positions[int(labels["position"])] += round(value)
        if _OF_SERVER - sums.keys():
            raise ConfigError(f"{self.url}/metrics has no counters of vLLM: is it a vLLM server?")
        if _OF_DRAFTS - sums.keys():
            raise ConfigError(
                f"{self.url} does not decode speculatively: start it with --speculative-config"
            )
        counters = Counters(
            num_drafts=sums[_DRAFTS],
            num_draft_tokens=sums[_DRAFT_TOKENS],
            num_accepted_tokens=sums[_ACCEPTED],
            accepted_per_position=[positions[k] for k in range(len(positions))],
        )
        return Totals(counters, sums[_GENERATED], sums[_REQUESTS])

    def _counted(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, temperature: float
    ) -> tuple[list[list[int]], Counters]:
        """Outputs, and what the counters grew by."""
        before = self.totals()
        outputs = self._complete(prompts, num_tokens, temperature)
        now = self._settled(before, num_tokens * len(prompts), len(prompts))
        counters = now.speculative.minus(before.speculative)
        if counters.num_draft_tokens != counters.num_drafts * self.num_draft_tokens:
            raise ConfigError(
                f"{self.url} drafted {counters.num_draft_tokens} tokens in {counters.num_drafts}"
                f" rounds, not {self.num_draft_tokens} in each: leave room for them in"
                " --max-model-len, and let it draft a fixed number"
            )
        return outputs, counters

    def _settled(self, before: Totals, tokens: int, requests: int) -> Totals:
        """The counters as soon as they hold so many more; they may lag behind an answer.

        Raises ConfigError where they hold more than that, or never come to hold as many.
        """
        deadline = time.monotonic() + COUNT_SECONDS
        while True:
            now = self.totals()
            new_tokens = now.generated_tokens - before.generated_tokens
            new_requests = now.finished_requests - before.finished_requests
            if new_tokens > tokens or new_requests > requests:
                raise ConfigError(
                    f"{self.url} served other requests meanwhile ({new_tokens} tokens where"
                    f" {tokens} were asked for): its counters say nothing then; measure a server"
                    " without traffic"
                )
            if (new_tokens, new_requests) == (tokens, requests):
                return now
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"the counters of {self.url} miss what it answered ({new_tokens} of {tokens}"
                    " tokens): are there several servers behind one address? Give one of them"
                )
            time.sleep(POLL_SECONDS)

    def _complete(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, temperature: float
    ) -> list[list[int]]:
        # What the target's generation_config would change is said here.
        body = {
            "model": self.model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": num_tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = self._json("POST", "/v1/completions", body)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            outputs = [[int(token) for token in choice["token_ids"]] for choice in choices]
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"{self.url} does not answer with token ids, as vLLM does when asked to"
            ) from None
        if [len(output) for output in outputs] != [num_tokens] * len(prompts):
            raise ValidationError(
                f"{self.url} was asked for {num_tokens} tokens for each of {len(prompts)} prompts,"
                f" and answered with {[len(output) for output in outputs]}"
            )
        return outputs

    def _served(self, name: str | None) -> tuple[str, int | None]:
        """The model to ask for, and its longest text."""
        answer = self._json("GET", "/v1/models")
        try:
            models = {str(model["id"]): model.get("max_model_len") for model in answer["data"]}
        except (KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"{self.url}/v1/models lists no models: is it a vLLM server?"
            ) from None
        if name is None and len(models) == 1:
            (name,) = models
        if name not in models:
            raise ConfigError(f"{self.url} serves {', '.join(models)}: give --serve-model")
        return name, models[name]

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        try:
            from prometheus_client.parser import text_string_to_metric_families
        except ImportError:
            raise ConfigError(
                f"--serve-url needs prometheus_client: {install_hint('server')}"
            ) from None
        text = self._text("GET", "/metrics")
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    yield sample.name, sample.labels, sample.value
        except (ValueError, KeyError):
            raise ConfigError(f"{self.url}/metrics is not in Prometheus' format") from None

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        text = self._text(method, path, body)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ConfigError(f"{self.url}{path} does not answer in JSON: is it a vLLM server?")
        return answer

    def _text(self, method: str, path: str, body: Any = None) -> str:
        import httpx

        try:
            response = self._client.request(method, path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise StoreError(f"{self.url}{path} cannot be reached: {reason}") from None
        status = response.status_code
        if status in (401, 403):
            raise ConfigError(f"{self.url} wants a token: set {TOKEN} to the right one")
        if status != 200:
            kind = ConfigError if status < 500 else StoreError
            raise kind(f"{self.url}{path} answers {status}: {response.text[:MOST_SHOWN]}")
        return str(response.text)


def _authorization() -> dict[str, str]:
    """Raises ConfigError, without the token, where no header can hold it: httpx would show it."""
    token = os.environ.get(TOKEN, "").strip()  # files of secrets end in a newline
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(f"{TOKEN} holds more than a token: give printable ASCII in one line")
    return {"Authorization": f"Bearer {token}"}


def _slices(num_prompts: int) -> list[slice]:
    """Groups of prompts, enough of them to see how much they differ."""
    size = min(LARGEST_GROUP, max(1, num_prompts // SMALLEST_NUMBER_OF_GROUPS))
    return [slice(at, min(at + size, num_prompts)) for at in range(0, num_prompts, size)]
