"""`specpipe serve-api` as a real server, with OpenAI's own client."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from specpipe.pipeline.api.app import PURPOSES, make_app
from specpipe.pipeline.api.database import JobDatabase, StoredJob
from tests.dump.conftest import save_target
from tests.pipeline.job.conftest import EXTRA
from tests.served import one_engine_without_a_drafter

__all__ = ["one_engine_without_a_drafter"]

TOKEN = "a-token-of-the-tests"


class Server:
    """A running server; its log goes to a file."""

    def __init__(self, folder: Path, *more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = folder.parent / "extra.yaml"
        config.write_text(EXTRA)
        self.log = folder.parent / "server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "specpipe", "serve-api", "--data", str(folder),
                 "--port", str(self.port), "--config", str(config), *more],
                env=os.environ | {"SPECPIPE_API_TOKEN": TOKEN},
                stdout=log,
                stderr=log,
            )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"
        self._clients: list[openai.OpenAI] = []
        self._wait()

    def client(self) -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0)
        self._clients.append(made)
        return made

    def end(self, number: int = signal.SIGTERM) -> None:
        for client in self._clients:
            client.close()
        self.process.send_signal(number)
        self.process.wait(60)

    def _wait(self) -> None:
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()
            try:
                httpx.get(f"{self.url}/health").raise_for_status()
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError(self.log.read_text())


@pytest.fixture(scope="session")
def api_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def store(tmp_path: Path) -> JobDatabase:
    return JobDatabase(tmp_path / "store")


def add_job(store: JobDatabase, body: dict[str, Any], name: str = "rows.jsonl") -> StoredJob:
    """A job in the queue, with a training file of its own."""
    file_id, path = store.new_file_path(name)
    path.write_bytes(b"{}\n")
    store.add_file(name, PURPOSES[0], path, file_id)
    job = store.add_job(body | {"training_file": file_id})
    assert job is not None
    return job


@pytest.fixture
def client(store: JobDatabase) -> TestClient:
    """The application on `store` within this process, without its worker."""
    app = make_app(store, TOKEN, 4 * 2**20, None)
    made = TestClient(app, raise_server_exceptions=False)
    made.headers["Authorization"] = f"Bearer {TOKEN}"
    return made


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """start(options...): a server on the same data each time."""
    started: list[Server] = []

    def make(*more: str) -> Server:
        started.append(Server(tmp_path / "api", *more))
        return started[-1]

    yield make
    for server in started:
        if server.process.poll() is None:
            server.end()
