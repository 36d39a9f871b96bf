"""`specpipe serve-api` refuses to start where it could not serve, and says why."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from specpipe.pipeline.api.database import JobDatabase
from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import SpecpipeError
from tests.pipeline.api.conftest import TOKEN
from tests.pipeline.api.test_api import Start


def refused(*arguments: str) -> SpecpipeError:
    found = CliRunner().invoke(specpipe, ["serve-api", *arguments])
    assert isinstance(found.exception, SpecpipeError), found.output
    return found.exception


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        error = refused("--data", str(tmp_path / "api"), "--port", port, "--token", TOKEN)
    assert error.exit_code == 2
    assert f"port {port}" in str(error)
    assert "--port" in str(error)


@pytest.mark.parametrize("token", ["seven-7", f"{TOKEN}\n", "a token in words", "geheimnisträger"])
def test_a_token_that_no_client_can_send(tmp_path: Path, token: str) -> None:
    error = refused("--data", str(tmp_path / "api"), "--port", "0", "--token", token)
    assert error.exit_code == 2
    assert token not in str(error)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_text("a diary, of more than a hundred letters" * 10)
    error = refused("--data", str(tmp_path), "--port", "0", "--token", TOKEN)
    assert error.exit_code == 4
    assert "jobs.sqlite" in str(error)


@pytest.mark.parametrize(
    ("text", "name"),
    [("train: {lerning_rate: 3}", "lerning_rate"), ("dump: {data: [/etc]}", "dump.data")],
)
def test_further_settings_that_fail_every_job(tmp_path: Path, text: str, name: str) -> None:
    config = tmp_path / "more.yaml"
    config.write_text(text)
    error = refused("--data", str(tmp_path / "api"), "--config", str(config), "--token", TOKEN)
    assert error.exit_code == 2
    assert name in str(error)


@pytest.mark.slow
def test_any_free_port_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "specpipe", "serve-api", "--data", "api", "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"SPECPIPE_API_TOKEN": TOKEN},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        port = int(told.partition("127.0.0.1:")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)):
            pass
        process.terminate()


def test_the_folder_may_be_named_otherwise_and_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = JobDatabase(Path("api"))
    file_id, path = store.new_file_path()
    path.write_text("rows")
    store.add_file("rows.jsonl", "fine-tune", path, file_id)
    monkeypatch.chdir("/")
    (tmp_path / "api").rename(tmp_path / "moved")
    found = JobDatabase(tmp_path / "moved").file(file_id)
    assert found is not None
    assert Path(found.path).read_text() == "rows"


@pytest.mark.slow
def test_a_header_without_end_is_refused(start: Start) -> None:
    """Before any token is seen: whoever sends one must not fill the memory."""
    server = start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ")
        sent, answer = 0, b""
        while sent < 2**23 and not answer:
            try:
                connection.sendall(b"x" * 2**16)
                sent += 2**16
                connection.setblocking(False)
                answer = connection.recv(2**16)
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                break
            finally:
                connection.setblocking(True)
    assert sent < 2**23
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    assert httpx.get(f"{server.url}/health").status_code == 200
