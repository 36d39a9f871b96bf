"""Opening the loggers that a run asks for, before its first step."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.extras import install_hint
from specpipe.schemas.records.checkpoint import LoggerRecord
from specpipe.schemas.settings.train import LoggerName, TrainConfig
from specpipe.stages.train.loggers.logger import Logger, Session
from specpipe.stages.train.loggers.records import Records, write_records
from specpipe.stages.train.loggers.reports import Reports

_CLASSES: dict[LoggerName, str] = {
    "tensorboard": "TensorBoard",
    "wandb": "WeightsAndBiases",
    "trackio": "Trackio",
    "mlflow": "Mlflow",
}


def check_loggers(names: Iterable[LoggerName]) -> None:
    """Raise ConfigError where the package of a logger is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"--log {name}: the package {name} is not installed;"
                f" {install_hint(f'log-{name}')}; or leave {name} out of --log"
            )


@contextmanager
def open_loggers(
    config: TrainConfig, folder: Path, step: int, records: Records, reports: Reports
) -> Iterator[None]:
    """Let `reports` go to the loggers of `config.log`, each on its old run where there is one.

    `step` is the one that training goes on from (-1: from the beginning). Raises ConfigError where
    a logger refuses to open. Leaving by an error leaves the run unfinished for them, too.
    """
    finished = False
    names: dict[str, str] = {}
    try:
        for name in config.log:
            record = records.get(name)
            logger = _opened(name, config, folder, step, record)
            reports.to(name, logger, record, step)
            names[name] = logger.run_id
        if records or names:
            write_records(folder, _now_open(records, names))
        yield
        finished = True
    finally:
        reports.close(finished=finished)


def _opened(
    name: LoggerName, config: TrainConfig, folder: Path, step: int, record: LoggerRecord | None
) -> Logger:
    session = Session(
        folder=folder,
        project=config.log_project,
        name=config.log_name or folder.resolve().name,
        settings=config.without_credentials().model_dump(mode="json"),
        step=step,
        run_id=None if record is None else record.run_id,
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


def _now_open(records: Records, names: Mapping[str, str]) -> Records:
    """The records of a run that reports to the loggers of `names`, which call it so."""
    before = {name: r.model_copy(update={"is_open": False}) for name, r in records.items()}
    now = {
        name: before.get(name, LoggerRecord(run_id=run_id)).model_copy(
            update={"run_id": run_id, "is_open": True}
        )
        for name, run_id in names.items()
    }
    return before | now
