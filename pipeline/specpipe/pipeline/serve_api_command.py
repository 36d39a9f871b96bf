"""`specpipe serve-api`."""

import secrets
from pathlib import Path

import click

from specpipe.pipeline.console import note
from specpipe.schemas.errors import ConfigError


@click.command("serve-api", short_help="A local server with the fine-tuning API.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of uploads, jobs and the queue.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
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
    data: Path, host: str, port: int, token: str | None, max_upload_mib: int, config_file: Path
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
            f"the server needs FastAPI and uvicorn ({error}): pip install 'specpipe[api]'"
        ) from None
    from specpipe.pipeline.api.store import Store
    from specpipe.pipeline.job.settings import read_sections
    from specpipe.stages.storage.folder_lock import locked

    read_sections(config_file)
    if token is None:
        token = secrets.token_urlsafe(32)
        note(f"token (new with every start; SPECPIPE_API_TOKEN sets it): {token}")
    if len(token) < 8:
        raise ConfigError("the token is too short: give 8 characters or more")
    with locked(data, "another server works in this folder"):
        app = make_app(Store(data), token, max_upload_mib * 2**20, config_file)
        note(f"listening on http://{host}:{port}/v1; data in {data}")
        uvicorn.run(app, host=host, port=port, log_level="warning")
