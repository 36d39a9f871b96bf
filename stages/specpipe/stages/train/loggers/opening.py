"""Opening the loggers that a run asks for, before its first step."""

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.extras import install_hint
from specpipe.schemas.records.checkpoint import LOGGERS_FILE
from specpipe.schemas.settings.train import LoggerName, TrainConfig
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.train.loggers.logger import Logger, Session
from specpipe.stages.train.loggers.reports import Reports
from specpipe.stages.untrusted.files import read_file

_CLASSES: dict[LoggerName, str] = {
    "tensorboard": "TensorBoard",
    "wandb": "WeightsAndBiases",
    "trackio": "Trackio",
    "mlflow": "Mlflow",
}


def _run_id(record: Any) -> Any:
    """Earlier versions wrote an object beside it."""
    return record.get("run_id") if isinstance(record, dict) else record


_RUN_IDS = TypeAdapter(dict[str, Annotated[str, BeforeValidator(_run_id)]])


def check_loggers(names: Iterable[LoggerName]) -> None:
    """Raise ConfigError where the package of a logger is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"--log {name}: the package {name} is not installed;"
                f" {install_hint(f'log-{name}')}; or leave {name} out of --log"
            )


@contextmanager
def open_loggers(config: TrainConfig, folder: Path, step: int, reports: Reports) -> Iterator[None]:
    """Let `reports` go to the loggers of `config.log`, each on its old run where there is one.

    `step` is the one that training goes on from (-1: from the beginning). Raises ConfigError where
    a logger refuses to open. Leaving by an error leaves the run unfinished for them, too.
    """
    finished = False
    run_ids = _read_run_ids(folder)
    try:
        for name in config.log:
            logger = _opened(name, config, folder, step, run_ids.get(name))
            reports.to(name, logger)
            run_ids[name] = logger.run_id
        if config.log:
            write_file(folder / LOGGERS_FILE, _RUN_IDS.dump_json(run_ids, indent=2))
        yield
        finished = True
    finally:
        reports.close(finished=finished)


def _read_run_ids(folder: Path) -> dict[str, str]:
    """What each logger calls the run, also those that are left out now."""
    path = folder / LOGGERS_FILE
    if not path.exists():
        return {}
    try:
        return _RUN_IDS.validate_json(read_file(path))
    except ValidationError as error:
        raise IntegrityError(f"{path} is damaged ({error}); remove it to report anew") from None


def _opened(
    name: LoggerName, config: TrainConfig, folder: Path, step: int, run_id: str | None
) -> Logger:
    session = Session(
        folder=folder,
        project=config.log_project,
        name=config.log_name or folder.resolve().name,
        settings=config.without_credentials().model_dump(mode="json"),
        step=step,
        run_id=run_id,
    )
    try:
        module = importlib.import_module(f"specpipe.stages.train.loggers.{name}")
        logger: Logger = getattr(module, _CLASSES[name])(session)
    except Exception as error:
        raise ConfigError(
            f"--log {name} cannot be opened: {type(error).__name__}: {error}; set it up, or leave"
            f" {name} out of --log"
        ) from error
    return logger
