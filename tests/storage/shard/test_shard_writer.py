"""What the writer refuses, and what it makes of odd input; test_shard_conformance.py has the rest.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.stages.storage.chunks.arrays import planned_chunks, shard_arrays, values_problem
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.storage.shard.scales import AuxScales, write_scales
from specpipe.stages.storage.shard.states import bfloat16_is_finite
from specpipe.stages.storage.shard.writer import ShardAttempt, ShardWriter
from specpipe.stages.storage.store.folder import Folder
from tests.storage.tiny import (
    Pair,
    equal_states,
    make_identity,
    make_pair,
    make_shards,
    vocab_of,
    write_dump,
    write_shard,
    write_tiny_scales,
)


def assert_samples_are(reader: ShardReader, pairs: list[Pair]) -> None:
    samples = reader.samples()
    assert len(samples) == len(pairs)
    for stored, (planned, states) in zip(samples, pairs, strict=True):
        for name in ("sample_id", "prompt_id", "multiplicity", "source", "metadata"):
            assert getattr(stored, name) == getattr(planned, name)
        assert stored.input_ids.dtype == np.int32
        assert stored.loss_mask.dtype == np.uint8
        assert stored.input_ids.tolist() == planned.input_ids.tolist()
        assert stored.loss_mask.tolist() == planned.loss_mask.tolist()
        assert equal_states(reader.read_sample(stored), states)


def test_a_shard_of_refused_samples_only(root: str) -> None:
    identity = make_identity()
    folder = Folder.open(root)
    manifest = ShardWriter(ShardAttempt(folder, 0), identity, 50, 20).commit(vocab_of([]))
    reader = ShardReader(folder, identity, manifest)
    assert reader.samples() == []
    assert reader.read_all().aux_TLH.shape == (0, 3, 4)
    assert not [entry for entry in manifest.objects if entry.trailer_bytes]


WRONG: list[tuple[dict[str, str], str, Any]] = [
    ({}, "aux_TLH", lambda aux_TLH: aux_TLH[1:]),
    ({}, "aux_TLH", lambda aux_TLH: aux_TLH.astype(np.float32)),
    ({}, "aux_TLH", lambda aux_TLH: aux_TLH[:, :2]),
    ({"states_dtype": "int8"}, "aux_TLH", lambda aux_TLH: aux_TLH.astype(np.int8)),
    ({}, "final_SH", lambda final_SH: final_SH[:-1]),
    ({}, "final_SH", lambda final_SH: None),
    ({}, "logz_S", lambda logz_S: logz_S.astype(np.float64)),
    ({}, "token_logprob_S", lambda token_logprob_S: token_logprob_S[:, None]),
    ({}, "argmax_S", lambda argmax_S: argmax_S.astype(np.int64)),
    ({}, "logits_SV", lambda _: np.zeros((6, 23), np.uint16)),
    ({"logits": "topk:5"}, "topk_ids_SK", lambda topk_ids_SK: topk_ids_SK[:, :4]),
    ({"logits": "topk:5"}, "topk_logits_SK", lambda _: None),
    ({"logits": "full"}, "logits_SV", lambda logits_SV: logits_SV[:, 1:]),
    ({"logits": "full"}, "logits_SV", lambda logits_SV: logits_SV.astype(np.float32)),
]


@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
@pytest.mark.parametrize(("format", "field", "change"), WRONG)
def test_the_writer_refuses_what_does_not_fit(
    shard_format: str, format: dict[str, str], field: str, change: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {**format, "shard_format": shard_format}
    identity = make_identity(**settings)
    sample, states = make_pair(identity, 0, 9, [(3, 9)])
    folder = Folder.open(str(tmp_path))
    scales = write_tiny_scales(folder, identity)
    writer = ShardWriter(ShardAttempt(folder, 0), identity, 9, 6, scales=scales)
    wrong: Any = {field: change(getattr(states, field))}
    with pytest.raises(IntegrityError, match=rf"data\.jsonl:1\): {field.rpartition('_')[0]} is"):
        writer.append(sample, replace(states, **wrong))
    # Nothing of what was refused is in the shard.
    writer.append(sample, states)
    manifest = writer.commit(vocab_of([(sample, states)]))
    reader = ShardReader(folder, identity, manifest)
    assert len(reader.samples()) == 1
    if identity.states_dtype == "bfloat16":
        assert_samples_are(reader, [(sample, states)])


def test_int8_needs_the_scales_of_the_dump(tmp_path: Path) -> None:
    identity = make_identity(states_dtype="int8")
    with pytest.raises(ConfigError, match="need the scales"):
        ShardWriter(ShardAttempt(Folder.open(str(tmp_path)), 0), identity, 9, 6)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F7F])
def test_int8_refuses_what_it_cannot_hold(bits: int, tmp_path: Path) -> None:
    """Infinite, no number, or so large that divided by its scale it overflows."""
    identity = make_identity(states_dtype="int8")
    sample, states = make_pair(identity, 0, 9, [(3, 9)])
    folder = Folder.open(str(tmp_path))
    scales = AuxScales.from_states(np.full_like(states.aux_TLH, 0x3080))  # 2^-30
    writer = ShardWriter(
        ShardAttempt(folder, 0), identity, 9, 6, scales=write_scales(folder, identity, scales)
    )
    states.aux_TLH[4, 1, 2] = bits
    with pytest.raises(IntegrityError, match="not finite, or too large to be stored as int8"):
        writer.append(sample, states)


def test_states_that_are_not_contiguous(tmp_path: Path) -> None:
    identity = make_identity()
    sample, states = make_pair(identity, 0, 9, [(3, 9)])
    folder = Folder.open(str(tmp_path))
    strided = np.asfortranarray(states.aux_TLH)
    manifest = write_shard(folder, identity, 0, [(sample, replace(states, aux_TLH=strided))])
    assert_samples_are(ShardReader(folder, identity, manifest), [(sample, states)])


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81, 0xFFFF])
def test_every_kind_of_non_finite_bfloat16(bits: int) -> None:
    values = np.array([0, 0x8000, 0x7F7F, 0xFF7F, 0x3F80], np.uint16)
    assert bfloat16_is_finite(values)
    for at in range(len(values)):
        broken = values.copy()
        broken[at] = bits
        assert not bfloat16_is_finite(broken)


def test_two_attempts_at_one_shard(root: str) -> None:
    identity = make_identity()
    pairs = make_shards(identity)[0]
    folder = Folder.open(root)
    first, second = (ShardWriter(ShardAttempt(folder, 0), identity, 26, 14) for _ in range(2))
    for pair in pairs:  # Both at once, as two workers would.
        first.append(*pair)
        second.append(*pair)
    winner = second.commit(vocab_of(pairs))
    assert first.commit(vocab_of(pairs)) == winner
    write_dump(root, identity, [])  # dump.json and index.json around it.
    manifests = [key for key in folder.list("shards") if key.endswith(".manifest.json")]
    assert manifests == ["shards/000000.manifest.json"]
    attempts = {key.split("/")[1] for key in folder.list("shards")} - {"000000.manifest.json"}
    listed = {entry.key.split("/")[1] for entry in winner.objects}
    assert len(attempts) == 2
    assert len(listed) == 1
    assert_samples_are(ShardReader(folder, identity, winner), pairs)


def test_a_manifest_of_another_dump_does_not_count(root: str) -> None:
    mine, other = make_identity(), make_identity(num_layers=2)
    folder = Folder.open(root)
    write_shard(folder, other, 0, [])
    with pytest.raises(IntegrityError, match=r"000000\.manifest\.json belongs to another dump"):
        write_shard(folder, mine, 0, make_shards(mine)[0])


def test_token_ids_are_checked_against_the_vocabulary() -> None:
    identity = make_identity()
    argmax = shard_arrays(identity, 1, 3, planned_chunks(identity, 1, 3))["argmax"]
    assert values_problem(argmax, np.array([0, 22], np.int32), 23) is None
    assert "vocabulary of 23" in str(values_problem(argmax, np.array([0, 23], np.int32), 23))
    assert "vocabulary of 23" in str(values_problem(argmax, np.array([-1, 2], np.int32), 23))
