"""A cheap check whether the inputs changed since the dump was planned: stamp.json.

The stamp is a hash of the configuration and of name, size and modification time of every input
file and target file. It is no part of the dump's identity: where it differs, the contents decide.
"""

from collections.abc import Sequence

from specpipe.schemas.records.dump import Sealed, canonical_sha256
from specpipe.schemas.settings.stages import InputConfig
from specpipe.stages.dump_plan.shards import Plan, plan_sha256
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.files.location import (
    CONFIG_FILE,
    local_folder,
    tokenizer_files,
    weight_files,
)
from specpipe.stages.text.input.files import input_files
from specpipe.stages.text.rejected import Rejection, to_jsonl

STAMP_FILE = "stamp.json"

# Fields that change neither the samples nor their states beyond rounding.
_FREE_FIELDS = {
    "out",
    "device",
    "batch_tokens",
    "trust_remote_code",
    "write_buffer_mib",
    "staging_mib",
    "executor",
    "workers",
    "worker_index",
    "worker_count",
    "time_limit",
    "require_servable",
}


class PlanStamp(Sealed):
    """stamp.json: hashes of the plan and of its inputs."""

    stamp: str
    num_shards: int
    plan_sha256: str
    rejected: str
    """Inputs that were refused or truncated, as in rejected.jsonl."""


def make_stamp(config: InputConfig, *, with_weights: bool = True) -> str:
    """The stamp of settings, input files and the target's files, its weights where they matter."""
    folder = local_folder(
        config.target,
        config.revision,
        with_weights=with_weights,
        with_code=config.trust_remote_code,
    )
    paths = [folder / CONFIG_FILE, *tokenizer_files(folder)]
    paths += weight_files(folder) if with_weights else []
    target = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    settings = config.model_dump(mode="json", exclude=_FREE_FIELDS)
    if not config.chat_template_kwargs:
        del settings["chat_template_kwargs"]  # as in the identity
    return canonical_sha256(
        {
            "config": settings,
            "target": target,
            "data": _data_stamps(config.data),
        }
    )


def _data_stamps(urls: Sequence[str]) -> list[list[str]]:
    # An fsspec file's ukey covers what its store knows of it: size, time, ETag.
    return [[file.path, str(file.filesystem.ukey(file.path))] for file in input_files(urls)]


def read_stamp(folder: Folder, stamp: str) -> PlanStamp | None:
    """What was planned of the same configuration and input, if anything was; None if damaged."""
    last = last_stamp(folder)
    return last if last is not None and last.stamp == stamp else None


def last_stamp(folder: Folder) -> PlanStamp | None:
    """What was planned last, of whatever input; None if nothing was, or if it is damaged."""
    if not folder.exists(STAMP_FILE):
        return None
    try:
        return PlanStamp.model_validate_json(folder.read(STAMP_FILE))
    except ValueError:
        return None


def write_stamp(folder: Folder, stamp: str, plan: Plan, rejections: Sequence[Rejection]) -> None:
    record = PlanStamp(
        stamp=stamp,
        num_shards=len(plan),
        plan_sha256=plan_sha256(folder, len(plan)),
        rejected=to_jsonl(rejections).decode(),
    )
    folder.write(STAMP_FILE, record.to_json())
