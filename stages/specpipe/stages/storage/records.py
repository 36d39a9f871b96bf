"""Read a JSON record of the dump: parsed, and checked to belong to it."""

from typing import TypeVar

from pydantic import ValidationError

from specpipe.schemas.dump import DumpHeader, DumpIndex, Record, ShardManifest, manifest_key
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.folder import HOW_TO_REPAIR, Folder

R = TypeVar("R", bound=Record)


def read_manifest(folder: Folder, key: str, fingerprint: str) -> ShardManifest:
    """A shard's manifest. Raises IntegrityError if it is damaged or belongs elsewhere."""
    return parse_manifest(folder.read(key), key, folder.where(key), fingerprint)


def parse_manifest(data: bytes, key: str, where: str, fingerprint: str) -> ShardManifest:
    manifest = parse_record(ShardManifest, data, where)
    if manifest.fingerprint != fingerprint:
        raise IntegrityError(
            f"{where} belongs to another dump (fingerprint {manifest.fingerprint[:12]}, this dump "
            f"has {fingerprint[:12]}); remove it and run the dump again"
        )
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


def parse_index(data: bytes, where: str, fingerprint: str) -> DumpIndex:
    index = parse_record(DumpIndex, data, where)
    if index.fingerprint != fingerprint:
        raise IntegrityError(
            f"{where} belongs to another dump (fingerprint {index.fingerprint[:12]}, this dump "
            f"has {fingerprint[:12]}); remove it and run the dump again"
        )
    return index


def parse_record(record: type[R], data: bytes, where: str) -> R:
    """A JSON object as a record; raises IntegrityError naming `where` and the first bad field."""
    try:
        return record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"{where} is damaged ({field + ': ' if field else ''}{first['msg']}); {HOW_TO_REPAIR}"
        ) from None
