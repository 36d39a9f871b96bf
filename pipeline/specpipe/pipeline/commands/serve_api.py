"""`specpipe serve-api`."""

import re
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

import click

from specpipe.pipeline.terminal.console import note
from specpipe.pipeline.terminal.local_folder import LocalFolder
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.extras import install_hint

_TOKEN = re.compile(r"[!-~]{8,}")


@click.command("serve-api", short_help="A local server with the fine-tuning API.")
@click.option(
    "--data",
    type=LocalFolder(),
    required=True,
    help="Folder of uploads, jobs and the queue.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="0: any that is free.",
)
@click.option(
    "--token",
    envvar="SPECPIPE_API_TOKEN",
    help="Bearer token that clients give (better: SPECPIPE_API_TOKEN).  [default: a new one]",
)
@click.option(
    "--max-upload-mib",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Largest request.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Further settings of every job, as `specpipe run --config` takes them.",
)  # fmt: skip
def serve_api(
    data: Path,
    host: str,
    port: int,
    token: str | None,
    max_upload_mib: int,
    config_file: Path | None,
) -> None:
    """Serve the spec-draft fine-tuning API of the hosted service on this machine.

    \b
      SPECPIPE_API_TOKEN=... specpipe serve-api --data runs/api
      client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="...")

    Files, and fine_tuning jobs: create, retrieve, list, cancel, events, checkpoints. Jobs run one
    after the other by `specpipe run`; a server that was killed goes on with its queue. It listens
    on the loopback address alone unless --host says otherwise: put a proxy with TLS before it then.
    """
    try:
        import uvicorn

        from specpipe.pipeline.api.app import make_app
    except ImportError as error:
        raise ConfigError(
            f"the server needs FastAPI and uvicorn ({error}): {install_hint('api')}"
        ) from None
    from specpipe.pipeline.api.database import JobDatabase
    from specpipe.pipeline.job.settings import check_sections, read_sections
    from specpipe.stages.storage.store.lock import locked

    check_sections(read_sections(config_file))
    if token is None:
        token = secrets.token_urlsafe(32)
        note(f"token (new with every start; SPECPIPE_API_TOKEN sets it): {token}")
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            "the token is too short or cannot stand in a request: give 8 or more letters, digits"
            " and signs of ASCII, without a space or a newline at its end"
        )
    with locked(data, "another server works in this folder"), _listening(host, port) as listener:
        store = JobDatabase(data)
        # Uploads come in where they will lie: /tmp may be small, or memory.
        tempfile.tempdir = str(store.files)
        app = make_app(store, token, max_upload_mib * 2**20, config_file)
        shown = f"[{host}]" if ":" in host else host
        note(f"listening on http://{shown}:{listener.getsockname()[1]}/v1; data in {data}")
        # httptools keeps a header without end in memory; h11 refuses it.
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", http="h11"))
        with suppress(KeyboardInterrupt):  # it has ended in order before that comes
            server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}; give another --port or --host"
        ) from None
