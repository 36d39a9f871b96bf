"""A cheap look at whether anything changed since the dump was finished: stamp.json.

The stamp is a hash of the configuration and of name, size and modification time of every input
file and target file. It is no part of the dump's identity: where it differs, the contents decide.
"""

import json
from collections.abc import Sequence

from specpipe.schemas.config import DumpConfig
from specpipe.schemas.dump import canonical_sha256
from specpipe.stages.dump.inputs import input_files
from specpipe.stages.storage.folder import Folder
from specpipe.stages.target.location import CONFIG_FILE, local_folder, tokenizer_files, weight_files

STAMP_FILE = "stamp.json"

# Fields that change neither the samples nor their states beyond rounding.
_FREE_FIELDS = {"out", "device", "batch_tokens", "trust_remote_code"}


def make_stamp(config: DumpConfig) -> str:
    folder = local_folder(config.target, config.revision)
    paths = [folder / CONFIG_FILE, *tokenizer_files(folder), *weight_files(folder)]
    target = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return canonical_sha256(
        {
            "config": config.model_dump(mode="json", exclude=_FREE_FIELDS),
            "target": target,
            "data": _data_stamps(config.data),
        }
    )


def _data_stamps(urls: Sequence[str]) -> list[list[str]]:
    # An fsspec file's ukey covers what its store knows of it: size, time, ETag.
    return [[path, str(filesystem.ukey(path))] for filesystem, path, _ in input_files(urls)]


def is_stamped(folder: Folder, stamp: str) -> bool:
    if not folder.exists(STAMP_FILE):
        return False
    try:
        return bool(json.loads(folder.read(STAMP_FILE)) == {"stamp": stamp})
    except ValueError:
        return False


def write_stamp(folder: Folder, stamp: str) -> None:
    folder.write(STAMP_FILE, json.dumps({"stamp": stamp}).encode())
