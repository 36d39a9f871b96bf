"""What is written is read, bit for bit, by specpipe and by zarr-python.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.arrays import planned_chunks, shard_arrays, values_problem
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.shard_reader import ShardReader
from specpipe.stages.storage.shard_writer import ShardWriter
from specpipe.stages.storage.states import bfloat16_is_finite
from specpipe.stages.storage.verify import verify
from tests.storage.tiny import (
    Pair,
    concatenated,
    equal_states,
    make_identity,
    make_pair,
    make_shards,
    vocab_of,
    write_dump,
    write_shard,
)


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A length and up to three supervised spans in it; possibly none that gives a row."""
    num_tokens = draw(st.integers(1, 30))
    ends = sorted(draw(st.sets(st.integers(0, num_tokens), max_size=6)))
    return num_tokens, list(zip(ends[::2], ends[1::2], strict=False))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(spans(), max_size=6),
    chunk_tokens=st.sampled_from([1, 3, 8, 64]),
    num_layers=st.sampled_from([1, 3, 5]),
    slack=st.integers(0, 20),
)
def test_round_trip(
    lengths: list[tuple[int, list[tuple[int, int]]]],
    chunk_tokens: int,
    num_layers: int,
    slack: int,
) -> None:
    identity = make_identity(chunk_tokens, hidden=3, num_layers=num_layers)
    pairs = [make_pair(identity, seed, *length) for seed, length in enumerate(lengths)]
    folder = Folder.open(f"memory://{uuid.uuid4().hex}")
    # The plan counts samples that are refused later, too.
    planned = sum(sample.num_tokens for sample, _ in pairs) + slack
    writer = ShardWriter(folder, identity, 0, planned, planned)
    for pair in pairs:
        writer.append(*pair)
    manifest = writer.commit(vocab_of(pairs))

    reader = ShardReader(folder, identity, manifest)
    assert_samples_are(reader, pairs)
    everything = reader.read_all()
    if pairs:
        assert equal_states(everything, concatenated([states for _, states in pairs]))
    assert everything.aux_TLH.shape == (manifest.num_tokens, num_layers, 3)
    assert everything.final_SH is not None
    assert everything.final_SH.shape == (manifest.num_rows, 3)
    assert reader.vocab().count_V.tolist() == vocab_of(pairs).count_V.tolist()
    folder.remove("shards")


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


def test_a_dump_on_every_store(root: str) -> None:
    identity = make_identity()
    shards = make_shards(identity)
    write_dump(root, identity, shards)
    dump = Dump.open(root)
    dump.check_objects()
    dump.check_metadata()
    assert dump.identity == identity
    assert [*dump.manifests] == [0, 1]
    for shard_id, pairs in enumerate(shards):
        assert_samples_are(dump.shard(shard_id), pairs)
    total = vocab_of([pair for pairs in shards for pair in pairs])
    assert dump.vocab().count_V.tolist() == total.count_V.tolist()
    assert dump.vocab().mass_V.tolist() == total.mass_V.tolist()
    assert dump.target_file("head.safetensors") == bytes(range(200))
    assert dump.num_bytes == sum(dump.folder.sizes().values()) - len(dump.folder.read("index.json"))

    seen: list[tuple[int, int]] = []
    report = verify(root, progress=lambda done, total: seen.append((done, total)))
    assert report.damages == ()
    assert report.complete
    assert report.num_objects == len(dump.entries)
    assert report.num_bytes == dump.num_bytes
    assert seen[-1] == (dump.num_bytes, dump.num_bytes)


def test_zarr_python_opens_it(tmp_path: Path) -> None:
    identity = make_identity()
    pairs = make_shards(identity)[0]
    manifest = write_shard(Folder.open(str(tmp_path)), identity, 0, pairs)
    group = zarr.open_group(tmp_path / manifest.folder / "states.zarr", mode="r", zarr_format=3)
    states = concatenated([states for _, states in pairs])
    assert sorted(group.array_keys()) == ["argmax", "aux", "final", "logz", "token_logprob"]
    for name, expected in states.columns().items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        values = np.asarray(array[:])
        assert values.dtype == expected.dtype
        assert values.tobytes() == expected.tobytes()
        is_bfloat16 = name in ("aux", "final")
        assert array.attrs.asdict() == ({"specpipe_dtype": "bfloat16"} if is_bfloat16 else {})
    assert group["aux"].metadata.dimension_names == ("token", "layer", "hidden")  # type: ignore[union-attr]


def test_a_shard_of_refused_samples_only(root: str) -> None:
    identity = make_identity()
    folder = Folder.open(root)
    manifest = ShardWriter(folder, identity, 0, 50, 20).commit(vocab_of([]))
    reader = ShardReader(folder, identity, manifest)
    assert reader.samples() == []
    assert reader.read_all().aux_TLH.shape == (0, 3, 4)
    assert not [entry for entry in manifest.objects if entry.trailer_bytes]


def test_the_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    identity = make_identity()
    sample, states = make_pair(identity, 0, 9, [(3, 9)])
    writer = ShardWriter(Folder.open(str(tmp_path)), identity, 0, 9, 6)
    wrong: list[dict[str, Any]] = [
        {"aux_TLH": states.aux_TLH[1:]},
        {"aux_TLH": states.aux_TLH.astype(np.float32)},
        {"aux_TLH": states.aux_TLH[:, :2]},
        {"final_SH": states.final_SH[:-1]},
        {"logz_S": states.logz_S.astype(np.float64)},
        {"token_logprob_S": states.token_logprob_S[:, None]},
        {"argmax_S": states.argmax_S.astype(np.int64)},
    ]
    for change in wrong:
        name = next(iter(change)).rpartition("_")[0]
        with pytest.raises(IntegrityError, match=rf"data\.jsonl:1\): {name} is"):
            writer.append(sample, replace(states, **change))
    # Nothing of what was refused is in the shard.
    writer.append(sample, states)
    manifest = writer.commit(vocab_of([(sample, states)]))
    reader = ShardReader(Folder.open(str(tmp_path)), identity, manifest)
    assert_samples_are(reader, [(sample, states)])


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
    first, second = (ShardWriter(folder, identity, 0, 26, 14) for _ in range(2))
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
