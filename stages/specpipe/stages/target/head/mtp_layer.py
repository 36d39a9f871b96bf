"""The target's own MTP layer, copied from its checkpoint into a dump's `target/` folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from specpipe.schemas.drafters.mtp_families import (
    MtpFamily,
    family_of,
    num_mtp_layers,
    our_name,
    text_settings,
)
from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import MTP_FILE, MTP_WEIGHTS_FILE, TARGET_FOLDER, MtpRecord
from specpipe.stages.storage.records import parse_record
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import put_object
from specpipe.stages.target.files.identity import read_config
from specpipe.stages.target.files.weights import stored_tensors
from specpipe.stages.target.head.verifier_head import Read
from specpipe.stages.untrusted.tensors import load_tensors, num_bytes_of


def save_mtp(source: Path, folder: Folder) -> None:
    """Write mtp.safetensors and, last, mtp.json of the target in a local folder; nothing of a
    target whose family has no MTP layer."""
    config = read_config(source)
    family = family_of(config)
    if family is None:
        return
    tensors = {name: file.get_tensor(name) for file, name in _own(source, family, config)}
    if tensors:
        put_object(folder, MTP_WEIGHTS_FILE, save_tensors(dict(sorted(tensors.items()))))
    record = MtpRecord(
        family=family.name,
        num_layers=max(1, num_mtp_layers(family, config)) if tensors else 0,
        tensors=tuple(sorted(tensors)),
    )
    put_object(folder, MTP_FILE, record.to_json())


def mtp_bytes(source: Path) -> tuple[int, int]:
    """Files that `save_mtp` writes, and about how many bytes; without weights on this disk, none
    are counted for them."""
    config = read_config(source)
    family = family_of(config)
    if family is None:
        return 0, 0
    num_bytes = 0
    if not any(source.glob("*.safetensors")):
        return 1, 0
    for file, name in _own(source, family, config):
        num_bytes += num_bytes_of(file, name)
    return (2 if num_bytes else 1), num_bytes


def load_mtp(read: Read) -> tuple[MtpRecord, dict[str, Tensor]]:
    """What `save_mtp` wrote, tensors under the checkpoint's names.

    Raises IntegrityError where the dump has no mtp.json, or its files do not fit each other.
    """
    record = parse_record(MtpRecord, read(MTP_FILE), f"{TARGET_FOLDER}/{MTP_FILE}")
    if not record.tensors:
        return record, {}
    where = f"{MTP_WEIGHTS_FILE} of the dump's target"
    tensors = load_tensors(read(MTP_WEIGHTS_FILE), where)
    if sorted(tensors) != sorted(record.tensors):
        raise IntegrityError(f"{where} does not hold the tensors that {MTP_FILE} names")
    return record, tensors


def _own(source: Path, family: MtpFamily, config: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """The tensors of the first MTP layer, each as an open file and a name in it."""
    num_layers = text_settings(config)["num_hidden_layers"]
    return stored_tensors(source, lambda name: our_name(family, name, num_layers) is not None)
