"""Dumps that were written once and stay: whoever changes the format by accident learns it here.

Their values are formulas (golden.py), so nothing but this file says what they hold.
"""

from pathlib import Path

import numpy as np
import pytest
import zarr

from specpipe.stages.storage.chunks.codec import chunk_codec
from specpipe.stages.storage.chunks.zarr_format import describes_the_same
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.listing import listed_arrays
from specpipe.stages.upkeep.verify.run import verify
from tests.storage.golden import (
    COUNTS,
    GOLDEN,
    IDENTITIES,
    golden_identity,
    golden_shards,
    stated,
    write_golden,
)
from tests.storage.tiny import concatenated, equal_states, vocab_of

SAMPLE_IDS = ["bd80bdaf5663942151c73557d9a3489c", "96a2df2ca3aeea44927affdf4430671c"]
PROMPT_IDS = ["e116a3f102926711de8d8644f7b941e5", SAMPLE_IDS[1]]

SCALARS = {"logz": 2715564224, "token_logprob": 4250718327, "argmax": 2045384038}
STATED: dict[str, tuple[str, dict[str, int]]] = {
    "dump-v1": ("f40401a08e425b27", {"aux": 3091914084, "final": 1591381041} | SCALARS),
    "dump-v1-zarr-full-int8-zstd": (
        "da77266870250e23",
        {"aux": 393214416, "logits": 2930844888} | SCALARS,
    ),
    "dump-v1-parquet": ("394183487c11afcf", {"aux": 3091914084, "final": 1591381041} | SCALARS),
    "dump-v1-parquet-topk-int8-zstd": (
        "264e901f03bc1382",
        {"aux": 393214416, "topk_ids": 2168070609, "topk_logits": 2937772725} | SCALARS,
    ),
    "dump-v1-topk-generated": (
        "f8f7c42468a6133b",
        {"aux": 3091914084, "topk_ids": 1786495088, "topk_logits": 1867383561} | SCALARS,
    ),
}
"""Fingerprint, and crc32c of what is read of each array."""


@pytest.fixture(params=IDENTITIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dump(name: str) -> Dump:
    return Dump.open(str(GOLDEN / name))


def test_it_is_sound_and_small(name: str) -> None:
    report = verify(str(GOLDEN / name))
    assert report.damages == ()
    assert report.complete
    files = [path for path in (GOLDEN / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40_000
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == IDENTITIES.keys()


def test_its_identity_and_what_is_read(name: str, dump: Dump) -> None:
    assert dump.identity == golden_identity(name)
    fingerprint, sample_ids, crcs = stated(name)
    assert (fingerprint, crcs) == STATED[name]
    assert sample_ids == SAMPLE_IDS


def test_its_samples(name: str, dump: Dump) -> None:
    [pairs] = golden_shards(name)
    samples = dump.shard(0).samples()
    assert [sample.prompt_id for sample in samples] == PROMPT_IDS
    for stored, (planned, _) in zip(samples, pairs, strict=True):
        for field in ("source", "multiplicity", "metadata", "max_new_tokens"):
            assert getattr(stored, field) == getattr(planned, field)
        assert stored.input_ids.tolist() == planned.input_ids.tolist()
        assert stored.loss_mask.tolist() == planned.loss_mask.tolist()
    assert dump.vocab().count_V.tolist() == vocab_of(pairs).count_V.tolist()
    assert dump.vocab().mass_V.tolist() == vocab_of(pairs).mass_V.tolist()
    counts = COUNTS if dump.identity.text.is_planned else None
    assert dump.manifests[0].generation == counts
    assert dump.index is not None
    assert dump.index.totals.generation == counts


def test_its_states_bit_for_bit(name: str, dump: Dump) -> None:
    [pairs] = golden_shards(name)
    reader = dump.shard(0)
    written = concatenated([states for _, states in pairs])
    one_by_one = concatenated([reader.read_sample(sample) for sample in reader.samples()])
    states = reader.read_all()
    assert equal_states(states, one_by_one)
    if dump.identity.states_dtype == "int8":  # Rounded: STATED says to what.
        crcs = [sample.crc32c for sample in reader.samples()]
        assert all(crc.keys() >= {"aux_1", "aux_2", "aux_scale"} for crc in crcs)
        assert states.aux_TLH.shape == written.aux_TLH.shape
    else:
        assert states.aux_TLH.tobytes() == written.aux_TLH.tobytes()
    for array, values in written.columns().items():
        if array != "aux":
            assert np.array_equal(states.columns()[array], values)


def test_the_same_is_written_today(name: str, dump: Dump, tmp_path: Path) -> None:
    """Byte for byte, but for Parquet files and Blosc frames, which are of their writers' versions;
    of those, the crc32c of each sample's rows."""
    write_golden(name, tmp_path)
    fresh = Dump.open(str(tmp_path))
    assert fresh.folder.list() == dump.folder.list()
    is_packed = dump.identity.compression != "none"
    for key in fresh.folder.list():
        derived = key in ("index.json", "shards/000000.manifest.json")
        packed = is_packed and "/c/" in key
        if not (derived or packed or key.endswith((".parquet", "zarr.json"))):
            assert fresh.folder.read(key) == dump.folder.read(key), key
    crcs = [[sample.crc32c for sample in d.shard(0).samples()] for d in (dump, fresh)]
    assert crcs[0] == crcs[1]
    manifests = [d.manifests[0].model_copy(update={"objects": ()}) for d in (dump, fresh)]
    assert manifests[0].model_dump(exclude={"content_sha256"}) == manifests[1].model_dump(
        exclude={"content_sha256"}
    )


def test_zarr_itself_writes_the_metadata_of_the_golden_dump() -> None:
    """To the byte, as zarr 3.1 writes it; a later zarr may write it otherwise."""
    dump = Dump.open(str(GOLDEN / "dump-v1"))
    for manifest in dump.manifests.values():
        codec = chunk_codec(dump.identity)
        arrays = listed_arrays(dump.identity, codec, manifest, "")
        documents = codec.metadata(arrays)
        assert [*documents] == codec.metadata_names(arrays)
        for name, data in documents.items():
            stored = dump.folder.read(f"{manifest.folder}/{name}")
            assert describes_the_same(stored, data)
            assert stored == data or not zarr.__version__.startswith("3.1.")
