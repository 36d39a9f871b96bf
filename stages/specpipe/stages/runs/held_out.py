"""The samples that a training run evaluated on, by the settings that it left."""

from pathlib import Path

from pydantic import ValidationError as PydanticError

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.checkpoint import CONFIG_FILE, TrainState
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.samples.selection import by_prompt, evaluated
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.untrusted.files import read_file


def run_settings(checkpoint: Path) -> ResolvedTrainConfig | None:
    """Settings of the run that `checkpoint` lies in; None for a checkpoint outside of a run."""
    path = checkpoint.parent.parent / CONFIG_FILE
    if not path.exists():
        return None
    try:
        return ResolvedTrainConfig.model_validate_json(read_file(path))
    except PydanticError as error:
        raise IntegrityError(f"{path} is not the configuration of a run: {error}") from None


def settings_for(
    dump: Dump, state: TrainState, run: ResolvedTrainConfig | None
) -> ResolvedTrainConfig | None:
    """The run's settings if it evaluated on this dump, or on a mixture that this dump is part of;
    then they say which samples it held out."""
    if run is None or dump.header.fingerprint == state.eval_dump_fingerprint:
        return run
    parts = [] if run.eval_dump else [run.dump, *run.mix]
    is_part = run.mix and dump.folder.url in [Folder.open(url).url for url in parts]
    return run if is_part else None


def evaluation(dump: Dump, run: ResolvedTrainConfig | None) -> tuple[SampleReader, list[SampleRef]]:
    """What the run evaluated on in this dump, by prompt; without a run, every sample."""
    if run is None:
        reader = SampleReader(dump, None)
        return reader, by_prompt(reader.refs())
    reader = SampleReader(dump, run.context_length)
    return reader, evaluated(reader, run)
