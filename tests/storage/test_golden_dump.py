"""A dump that was written once and stays: whoever changes the format by accident learns it here.

Its values are formulas, so nothing but this file says what it holds.
"""

from pathlib import Path

import numpy as np
import pytest

from specpipe.schemas.dump import DumpIdentity
from specpipe.schemas.sample import Sample, Source
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.samples import PlannedSample
from specpipe.stages.storage.states import SampleStates
from specpipe.stages.storage.verify import verify
from tests.storage.tiny import Pair, equal_states, make_identity, vocab_of, write_dump

GOLDEN = Path(__file__).parents[1] / "golden" / "dump-v1"

SAMPLE_IDS = ["bd80bdaf5663942151c73557d9a3489c", "96a2df2ca3aeea44927affdf4430671c"]
PROMPT_IDS = ["e116a3f102926711de8d8644f7b941e5", SAMPLE_IDS[1]]
AUX_CRCS = [1395788391, 159109982]


def golden_pair(number: int, num_tokens: int, mask: list[int]) -> Pair:
    ids_T = np.arange(num_tokens, dtype=np.int32) * 3 % 23
    sample = PlannedSample.of(
        Sample(
            ids_T,
            np.array(mask, np.uint8),
            Source("golden.jsonl", number),
            multiplicity=number,
            metadata={"name": f"sample {number}, with ü"},
        )
    )
    num_rows = sample.num_rows
    start = 1000 * number
    return sample, SampleStates(
        # 0x3C00 + n and 0xBC00 + n: small positive and negative bfloat16 values.
        aux_TLH=(0x3C00 + start + np.arange(num_tokens * 8)).astype("u2").reshape(-1, 2, 4),
        final_SH=(0xBC00 + start + np.arange(num_rows * 4)).astype("u2").reshape(-1, 4),
        logz_S=(np.arange(num_rows) / 4 + number).astype(np.float32),
        token_logprob_S=(-np.arange(num_rows) / 8 - number).astype(np.float32),
        argmax_S=np.arange(num_rows, dtype=np.int32) + number,
    )


def golden_identity() -> DumpIdentity:
    return make_identity(chunk_tokens=4, hidden=4, num_layers=2)


def golden_shards() -> list[list[Pair]]:
    return [
        [
            golden_pair(1, 7, [0, 0, 0, 1, 1, 1, 1]),
            golden_pair(2, 6, [0, 1, 1, 0, 0, 1]),
        ]
    ]


@pytest.fixture(scope="module")
def dump() -> Dump:
    return Dump.open(str(GOLDEN))


def test_it_is_sound() -> None:
    report = verify(str(GOLDEN))
    assert report.damages == ()
    assert report.complete
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 40_000


def test_its_identity(dump: Dump) -> None:
    assert dump.identity == golden_identity()
    assert dump.header.fingerprint == golden_identity().fingerprint
    assert dump.header.fingerprint.startswith("bb96568e700d0121")


def test_its_samples_and_states_bit_for_bit(dump: Dump) -> None:
    [pairs] = golden_shards()
    reader = dump.shard(0)
    samples = reader.samples()
    assert [sample.sample_id for sample in samples] == SAMPLE_IDS
    assert [sample.prompt_id for sample in samples] == PROMPT_IDS
    assert [sample.aux_crc32c for sample in samples] == AUX_CRCS
    for stored, (planned, states) in zip(samples, pairs, strict=True):
        assert stored.source == planned.source
        assert stored.multiplicity == planned.multiplicity
        assert stored.metadata == planned.metadata
        assert stored.input_ids.tolist() == planned.input_ids.tolist()
        assert stored.loss_mask.tolist() == planned.loss_mask.tolist()
        assert equal_states(reader.read_sample(stored), states)
    assert dump.vocab().count_V.tolist() == vocab_of(pairs).count_V.tolist()
    assert dump.vocab().mass_V.tolist() == vocab_of(pairs).mass_V.tolist()


def test_the_same_chunks_are_written_today(dump: Dump, tmp_path: Path) -> None:
    """All objects but Parquet files (which name their writer's version), byte for byte."""
    write_dump(str(tmp_path), golden_identity(), golden_shards())
    fresh = Dump.open(str(tmp_path)).folder
    assert fresh.list() == dump.folder.list()
    for key in fresh.list():
        derived = key in ("index.json", "shards/000000.manifest.json")
        if not derived and not key.endswith((".parquet", "zarr.json")):
            assert fresh.read(key) == dump.folder.read(key), key
