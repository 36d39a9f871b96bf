"""What loggers have of a run, read by their own packages."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

History = dict[str, list[tuple[int, float]]]
"""(step, value) by metric, in the order in which they were reported."""


def tensorboard_history(folder: Path) -> History:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def wandb_history(folder: Path) -> History:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service writes the last block as it ends
    history: History = defaultdict(list)
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1, "several runs instead of one that goes on"
    for file in files:
        for data in _log_entries(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            row = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            for key, value in row.items():
                if key.startswith(("train/", "eval/")):
                    history[key].append((int(row["step"]), float(value)))
    return history


def _log_entries(data: bytes) -> Iterator[bytes]:
    """The entries of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    block, header, at, entry = 32768, 7, 7, b""
    while at + header <= len(data):
        if block - at % block < header:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        entry += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or the last part
            yield entry
            entry = b""


def trackio_history(_folder: Path) -> History:
    from trackio.sqlite_storage import SQLiteStorage

    history: History = defaultdict(list)
    (run_name,) = SQLiteStorage.get_runs("tests")
    for row in SQLiteStorage.get_logs("tests", run_name):
        for key, value in row.items():
            if key.startswith(("train/", "eval/")):
                history[key].append((row["step"], value))
    return history


def mlflow_history(_folder: Path) -> History:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("tests")
    (found,) = client.search_runs([experiment.experiment_id])
    return {
        key: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, key)]
        for key in found.data.metrics
    }


READERS = {
    "tensorboard": tensorboard_history,
    "wandb": wandb_history,
    "trackio": trackio_history,
    "mlflow": mlflow_history,
}


def history(name: str, folder: Path) -> History:
    return dict(READERS[name](folder))
