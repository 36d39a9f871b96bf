"""A hub on the loopback, with one model."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


@contextmanager
def hub(repository: Path, name: str = "org/model") -> Iterator[tuple[str, list[str]]]:
    """Its address, and the files that were fetched so far."""
    files = sorted(str(path.relative_to(repository)) for path in repository.rglob("*.*"))
    fetched: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            _, _, file = self.path.partition("/resolve/")
            file = file.partition("/")[2]
            if self.path.startswith(f"/api/models/{name}/revision/"):
                siblings = [{"rfilename": file} for file in files]
                body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
            elif self.path.startswith(f"/api/models/{name}/tree/"):
                entries = [
                    {
                        "type": "file",
                        "path": file,
                        "size": (repository / file).stat().st_size,
                        "oid": hashlib.sha256((repository / file).read_bytes()).hexdigest(),
                    }
                    for file in files
                ]
                body = json.dumps(entries).encode()
            elif file in files:
                body = (repository / file).read_bytes()
                if with_body:
                    fetched.append(file)
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", fetched
        server.shutdown()
