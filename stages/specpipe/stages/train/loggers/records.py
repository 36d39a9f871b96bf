"""loggers.json: what each logger calls the run, and how far the run has been reported to it."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.checkpoint import LOGGERS_FILE, LoggerRecord
from specpipe.stages.runs.metric_rows import metric_rows
from specpipe.stages.storage.store.local_disk import write_file
from specpipe.stages.untrusted.files import read_file

Records = dict[str, LoggerRecord]

_RECORDS = TypeAdapter(Records)


def read_records(folder: Path) -> Records:
    """The records as the last run left them; called before metrics.jsonl is cut.

    A run writes a row to metrics.jsonl and then reports it: so those who were reported to when it
    ended have what stands there, and whatever they had before.
    """
    path = folder / LOGGERS_FILE
    if not path.exists():
        return {}
    try:
        records = _RECORDS.validate_json(read_file(path))
    except ValidationError as error:
        raise IntegrityError(f"{path} is damaged ({error}); remove it to report anew") from None
    step, evaluation = _last_rows(folder)
    return {
        name: record.model_copy(
            update={
                "step": max(record.step, step),
                "evaluation": max(record.evaluation, evaluation),
            }
        )
        if record.is_open
        else record
        for name, record in records.items()
    }


def write_records(folder: Path, records: Records) -> None:
    write_file(folder / LOGGERS_FILE, _RECORDS.dump_json(records, indent=2))


def _last_rows(run: Path) -> tuple[int, int]:
    """The last step and the last evaluation of metrics.jsonl (-1: none)."""
    step, evaluation = -1, -1
    for row in metric_rows(run):
        if "eval" in row:
            evaluation = row["step"]
        else:
            step = row["step"]
    return step, evaluation
