"""The objects that the manifest of a shard must list, with their sizes."""

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import (
    CHUNK_TRAILER_BYTES,
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    ObjectEntry,
    ShardManifest,
)
from specpipe.stages.storage.chunks.arrays import (
    ArrayLayout,
    array_names,
    most_chunk_rows,
    shard_arrays,
)
from specpipe.stages.storage.chunks.codec import ChunkCodec


def shard_entries(manifest: ShardManifest) -> dict[str, ObjectEntry]:
    """The manifest's objects by their keys relative to the shard's folder."""
    start = len(manifest.folder) + 1
    return {entry.key[start:]: entry for entry in manifest.objects}


def listed_arrays(
    identity: DumpIdentity, codec: ChunkCodec, manifest: ShardManifest, where: str
) -> dict[str, ArrayLayout]:
    """The arrays of a committed shard, in the chunks that the manifest says.

    Raises IntegrityError if the manifest does not list exactly the objects of such a shard, or
    gives chunks more rows than the dump's have.
    """
    _check_int8(identity, manifest, where)
    entries = shard_entries(manifest)
    arrays = _arrays(identity, manifest, where)
    # Before the chunks are named one by one: the counts may be of anything.
    num_chunks = sum(array.num_chunks for array in arrays.values())
    if num_chunks > len(entries):
        raise IntegrityError(
            f"the manifest of {where} counts {manifest.num_tokens} tokens and {manifest.num_rows} "
            f"verifier rows, which take {num_chunks} chunks, but lists {len(entries)} objects"
        )
    chunks = {codec.chunk_name(a, i): a for a in arrays.values() for i in range(a.num_chunks)}
    names = {SAMPLES_FILE, VOCAB_FILE, *chunks, *codec.metadata_names(arrays)}
    if wrong := sorted(names ^ entries.keys()):
        what = "does not list" if wrong[0] in names else "lists a foreign object,"
        raise IntegrityError(f"the manifest of {where} {what} {wrong[0]}")
    if codec.is_raw:
        for name, array in chunks.items():
            size = array.payload_bytes + CHUNK_TRAILER_BYTES
            if entries[name].size != size or not entries[name].trailer_bytes:
                raise IntegrityError(
                    f"the manifest of {where} gives {name} {entries[name].size} bytes, not {size}"
                )
    return arrays


def _arrays(identity: DumpIdentity, manifest: ShardManifest, where: str) -> dict[str, ArrayLayout]:
    most, rows = most_chunk_rows(identity), manifest.chunk_rows
    if wrong := sorted(most.keys() ^ rows.keys()):
        raise IntegrityError(f"the manifest of {where} has other arrays than the dump: {wrong[0]}")
    for name in array_names(identity):
        if rows[name] > most[name]:
            raise IntegrityError(
                f"the manifest of {where} gives {name} chunks of {rows[name]} rows; this dump's "
                f"have at most {most[name]}"
            )
    return shard_arrays(identity, manifest.num_tokens, manifest.num_rows, rows)


def _check_int8(identity: DumpIdentity, manifest: ShardManifest, where: str) -> None:
    is_int8 = identity.states_dtype == "int8"
    has_scales = manifest.aux_scales_crc32c is not None
    num_errors = len(manifest.aux_error or ())
    if has_scales != is_int8 or num_errors != (len(identity.layers) if is_int8 else 0):
        raise IntegrityError(
            f"the manifest of {where} does not say of its states what {identity.states_dtype} "
            "states need"
        )
