"""A local S3 server (moto) for tests, that keeps a log of its requests and fails when told to.

`s3_server` runs for the whole session; `s3_root` is the URL of a fresh bucket, with the
environment set so that s3fs finds the server, also in child processes.
"""

import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

# Real servers answer so, and cut connections so. `lost`: it is done, but the answer is an error.
Fault = Literal["403", "404", "500", "503", "cut", "lost"]

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_ANSWERS = {
    "403": (b"AccessDenied", "403 Forbidden"),
    "404": (b"NoSuchBucket", "404 Not Found"),
    "500": (b"InternalError", "500 Internal Server Error"),
    "503": (b"SlowDown", "503 Slow Down"),
    "lost": (b"InternalError", "500 Internal Server Error"),
}
_ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message></Error>'
)


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """/bucket/key"""
    query: str
    headers: dict[str, str]

    @property
    def key(self) -> str:
        return self.path.lstrip("/").partition("/")[2]


@dataclass
class S3Server:
    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)
    """All since the last `clear`."""
    fault: Callable[[Request], Fault | None] = lambda request: None
    """What goes wrong with a request; nothing by default."""

    def clear(self) -> None:
        self.requests.clear()
        self.fault = lambda request: None

    def methods(self, key: str = "") -> list[str]:
        """The methods of the requests for a key that ends so."""
        return [request.method for request in self.requests if request.key.endswith(key)]

    def make_bucket(self) -> str:
        """Make a bucket; returns its URL."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        made = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.urlopen(made, timeout=30) as answer:
            assert answer.status == 200
        return f"s3://{name}"

    def answer(self, app: Any, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """One request (WSGI)."""
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        request = Request(
            environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], headers
        )
        self.requests.append(request)
        fault = self.fault(request)
        if fault == "cut":
            body = b"".join(app(environ, start_response))
            return [body[: len(body) // 2]]
        if fault is None:
            answer: Iterable[bytes] = app(environ, start_response)
            return answer
        if fault == "lost":
            list(app(environ, lambda status, headers, *rest: None))
        else:
            # A client that still sends its body would take the closed connection for the fault.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        code, status = _ANSWERS[fault]
        body = _ERROR % (code, b"injected")
        start_response(
            status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        )
        return [body]


@pytest.fixture(scope="session")
def s3_session() -> Iterator[S3Server]:
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):  # type: ignore[misc]
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    app = DomainDispatcherApplication(create_backend_app)
    server = S3Server()
    http = make_server(
        "127.0.0.1",
        0,
        lambda environ, start_response: server.answer(app, environ, start_response),
        threaded=True,
        request_handler=Quiet,
    )
    server.endpoint = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield server
    http.shutdown()
    thread.join()
    http.server_close()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let s3fs, in this process and its children, use this server and no other."""
    import s3fs

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    # An open file system keeps the endpoint that it was opened with.
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_server(s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, reachable through the environment; its log is empty and it does not fail."""
    use_endpoint(monkeypatch, s3_session.endpoint)
    s3_session.clear()
    yield s3_session
    s3_session.clear()


@pytest.fixture
def s3_root(s3_server: S3Server) -> str:
    """A root in a bucket of its own."""
    root = f"{s3_server.make_bucket()}/root"
    s3_server.clear()
    return root
