"""Read a JSON record of the dump: parsed, and checked to belong to it."""

from typing import TypeVar

from pydantic import ValidationError

from specpipe.schemas.base import Record
from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import (
    DumpHeader,
    DumpIndex,
    ShardManifest,
    manifest_key,
)
from specpipe.stages.storage.store.folder import HOW_TO_REPAIR, Folder
from specpipe.stages.untrusted.foreign import first_bad_field

R = TypeVar("R", bound=Record)


def read_manifest(folder: Folder, key: str, fingerprint: str) -> ShardManifest:
    """A shard's manifest. Raises IntegrityError if it is damaged or belongs elsewhere."""
    return parse_manifest(folder.read_small(key), key, folder.where(key), fingerprint)


def parse_manifest(data: bytes, key: str, where: str, fingerprint: str | None) -> ShardManifest:
    """`fingerprint` None: the dump's is not known."""
    manifest = parse_record(ShardManifest, data, where)
    _check_fingerprint(manifest.fingerprint, fingerprint, where)
    if key != manifest_key(manifest.shard_id):
        raise IntegrityError(f"{where} is the manifest of shard {manifest.shard_id}")
    for entry in manifest.objects:
        if not entry.key.startswith(f"{manifest.folder}/"):
            raise IntegrityError(f"{where} lists {entry.key}, which is not in {manifest.folder}/")
    return manifest


def parse_header(data: bytes, where: str) -> DumpHeader:
    header = parse_record(DumpHeader, data, where)
    if header.fingerprint != header.identity.fingerprint:
        raise IntegrityError(f"{where} is damaged: its fingerprint is not that of its identity")
    return header


def parse_index(data: bytes, where: str, fingerprint: str | None) -> DumpIndex:
    """`fingerprint` None: the dump's is not known."""
    index = parse_record(DumpIndex, data, where)
    _check_fingerprint(index.fingerprint, fingerprint, where)
    return index


def _check_fingerprint(found: str, expected: str | None, where: str) -> None:
    if expected is not None and found != expected:
        raise IntegrityError(
            f"{where} belongs to another dump (fingerprint {found[:12]}, this one has "
            f"{expected[:12]}); remove it and run `specpipe dump` again"
        )


def parse_record(record: type[R], data: bytes, where: str) -> R:
    """A JSON object as a record; raises IntegrityError naming `where` and the first bad field."""
    if not data.endswith(b"}\n"):
        raise IntegrityError(f"{where} is truncated; {HOW_TO_REPAIR}")
    try:
        return record.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(
            f"{where} is damaged ({first_bad_field(error)}); {HOW_TO_REPAIR}"
        ) from None
