"""Whatever happens to whichever object: verify names it, and no reader uses it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import AUX_SCALES_FILE, DumpIdentity
from specpipe.schemas.records.sample import Sample
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.storage.shard.scales import read_scales
from specpipe.stages.storage.shard.states import SampleStates
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.upkeep.verify.run import verify
from tests.storage.damages import (
    DAMAGES,
    FORMATS,
    SHARD,
    assert_every_damage_shows,
    chunk_key,
    manifest_of,
    named,
    replace_rows,
    stored_rows,
)
from tests.storage.tiny import (
    equal_states,
    make_identity,
    make_shards,
    use_everything,
    write_dump,
    write_index,
)

ONE_OF_FORMATS = [
    pytest.param(name, marks=() if name == "zarr" else pytest.mark.slow) for name in FORMATS
]
"""All, of which the fast tests take one."""


def dump_in(format: str, path: Path, num_layers: int = 3) -> tuple[DumpIdentity, Folder]:
    # Several chunks of every array, but not many: each object is damaged, and the dump read again.
    chunk_tokens = 16 if "int8" in format else 12
    identity = make_identity(chunk_tokens, num_layers=num_layers, **FORMATS[format])
    return identity, write_dump(str(path), identity, make_shards(identity))


def dump_of_each_kind_in(format: str, path: Path) -> tuple[DumpIdentity, Folder]:
    """With the fewest layers that can be taken for each other, where there are scales of each."""
    return dump_in(format, path, 2 if "int8" in format else 3)


@pytest.mark.parametrize("format", ONE_OF_FORMATS)
@pytest.mark.parametrize("kind", DAMAGES)
def test_every_object(format: str, kind: str, tmp_path: Path) -> None:
    _, folder = dump_of_each_kind_in(format, tmp_path)
    keys = folder.list()
    assert len(keys) > 35
    assert_every_damage_shows(str(tmp_path), kind, keys)


@pytest.mark.parametrize("format", ONE_OF_FORMATS)
@pytest.mark.parametrize("other", ["another shard", "another attempt"])
def test_every_object_replaced_by_that_of(other: str, format: str, tmp_path: Path) -> None:
    """The same samples with other states, or other samples: an object for every one there is."""
    identity, folder = dump_of_each_kind_in(format, tmp_path / "dump")
    shards = make_shards(identity)
    if other == "another shard":
        shards.reverse()
    else:
        shards = [[(sample, shifted(states)) for sample, states in pairs] for pairs in shards]
    others = write_dump(str(tmp_path / "other"), identity, shards)
    num_replaced = 0
    for key in sorted({*folder.list()} & {*others.list()}):
        written, replacement = folder.read(key), others.read(key)
        if written == replacement:
            continue
        num_replaced += 1
        folder.write(key, replacement)
        damages = {damage.key for damage in verify(folder.url).damages}
        # An index that is not of these manifests names them.
        assert damages if key == "index.json" else key in damages, key
        with pytest.raises(IntegrityError):
            use_everything(folder.url)
        folder.write(key, written)
    assert num_replaced > 20
    assert verify(folder.url).damages == ()


def shifted(states: SampleStates) -> SampleStates:
    """Every row but the first is the one before it."""
    columns = {name: np.roll(v, 1, axis=0) for name, v in states.columns().items()}
    return SampleStates.of_columns(columns)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["middle byte flipped", "removed", "half"])
def test_reading_at_random_uses_nothing_damaged(format: str, kind: str, tmp_path: Path) -> None:
    """Without any check beforehand: a sample whose rows are damaged is not returned."""
    identity, folder = dump_in(format, tmp_path)
    manifest = manifest_of(folder, identity)
    reader = ShardReader(folder, identity, manifest)
    sound = {sample.sample_id: reader.read_sample(sample) for sample in reader.samples()}
    chunks = [e.key for e in manifest.objects if "/states." in e.key and "zarr.json" not in e.key]
    assert len(chunks) > 8
    num_refused = 0
    for key in chunks:
        written = folder.read(key)
        DAMAGES[kind](folder, key)
        reader = ShardReader(folder, identity, manifest)
        for sample in reader.samples():
            try:
                states = reader.read_sample(sample)
            except IntegrityError:
                num_refused += 1
            else:
                assert equal_states(states, sound[sample.sample_id])
        folder.write(key, written)
    assert num_refused >= len(chunks)


@pytest.mark.parametrize("format", FORMATS)
def test_two_layers_swapped_with_every_crc_to_match(format: str, tmp_path: Path) -> None:
    identity, folder = dump_in(format, tmp_path)
    first, second = (stored_rows(folder, identity, name, 0) for name in ("aux_1", "aux_2"))
    replace_rows(folder, identity, "aux_1", 0, second)
    replace_rows(folder, identity, "aux_2", 0, first)
    problems = named(tmp_path)
    # The first sample has 13 tokens; which of its chunks is wrong cannot be known.
    touched = range(-(-13 // manifest_of(folder, identity).chunk_rows["aux_1"]))
    assert [*problems] == [
        chunk_key(folder, identity, name, index) for name in ("aux_1", "aux_2") for index in touched
    ]
    of_first = problems[chunk_key(folder, identity, "aux_1", 0)]
    assert "does not hold what was written of aux_1 of sample" in of_first
    dump = Dump.open(str(tmp_path))
    reader = dump.shard(0)
    with pytest.raises(IntegrityError, match="does not hold what was written of aux_1"):
        reader.read_all()
    with pytest.raises(IntegrityError, match=r"aux_1 of sample .* is not what was written"):
        reader.read_sample(reader.samples()[0])
    reader.read_sample(reader.samples()[-1])
    # Who does not need them does not read them.
    dump.shard(0, [3]).read_all()


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("zarr", "final"),
        ("parquet", "final"),
        ("zarr zstd int8 topk", "topk_ids"),
        ("zarr zstd int8 topk", "topk_logits"),
        ("parquet zstd int8 full", "logits"),
    ],
)
def test_two_chunks_swapped_with_every_crc_to_match(format: str, name: str, tmp_path: Path) -> None:
    identity, folder = dump_in(format, tmp_path)
    first, second = (stored_rows(folder, identity, name, index) for index in range(2))
    replace_rows(folder, identity, name, 0, second[: len(first)])
    replace_rows(folder, identity, name, 1, first[: len(second)])
    keys = [chunk_key(folder, identity, name, index) for index in range(2)]
    assert [*named(tmp_path)][:2] == keys
    with pytest.raises(IntegrityError, match=f"does not hold what was written of {name}"):
        Dump.open(str(tmp_path)).shard(0).read_all()


@pytest.mark.parametrize("move", ["reversed", "shifted"])
@pytest.mark.parametrize(
    ("format", "name"),
    [
        (format, name)
        for format in ("zarr zstd int8 topk", "parquet zstd int8 full")
        for name in ("aux_3", "aux_scale", "logz", "token_logprob", "argmax")
    ]
    + [(format, name) for format in ("zarr", "parquet") for name in ("aux_3", "final")],
)
def test_rows_moved_with_every_crc_to_match(
    format: str, name: str, move: str, tmp_path: Path
) -> None:
    identity, folder = dump_in(format, tmp_path)
    rows = stored_rows(folder, identity, name, 0)
    moved = rows[::-1] if move == "reversed" else np.roll(rows, 1, axis=0)
    replace_rows(folder, identity, name, 0, moved)
    assert chunk_key(folder, identity, name, 0) in named(tmp_path)
    for read in reads_of(tmp_path):
        with pytest.raises(IntegrityError, match=f"written of {name} of|{name} of sample"):
            read()


def reads_of(dump: Path) -> list[Callable[[], object]]:
    """The ways to the states of the first sample."""
    reader = Dump.open(str(dump)).shard(0)
    return [reader.read_all, lambda: reader.read_sample(reader.samples()[0])]


@pytest.mark.parametrize("format", [name for name in FORMATS if "int8" in name])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda scale_LH: scale_LH * 2, "is not the one that"),
        (lambda scale_LH: scale_LH[:, 1:], "does not hold a positive float32"),
        (lambda scale_LH: scale_LH * 0, "does not hold a positive float32"),
        (lambda scale_LH: scale_LH * np.float32(np.inf), "does not hold a positive float32"),
        (lambda scale_LH: scale_LH.astype(np.float64), "does not hold a positive float32"),
        (None, "is no safetensors file"),
    ],
)
def test_scales_of_another_dump(
    format: str,
    change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None,
    problem: str,
    tmp_path: Path,
) -> None:
    """Listed with the crc that they have: somebody made them anew."""
    identity, folder = dump_in(format, tmp_path)
    channel_LH = read_scales(folder, identity).channel_LH
    data = save({"channel_scale": change(channel_LH)}) if change else b"{}"
    folder.write(AUX_SCALES_FILE, data)
    write_index(folder, identity)
    problems = named(tmp_path)
    assert [*problems] == [AUX_SCALES_FILE]
    assert problem in problems[AUX_SCALES_FILE]
    for read in reads_of(tmp_path):
        with pytest.raises(IntegrityError, match=f"aux_scales.safetensors {problem}"):
            read()


@pytest.mark.parametrize("format", ["zarr", "parquet"])
@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("aux_1", 1, 0x7FC0),
        ("aux_1", 1, 0xFF80),
        ("final", 1, 0xFFC0),
        ("logz", 0, np.inf),
        ("token_logprob", 0, np.nan),
        ("argmax", 0, 23),
        ("argmax", 0, -1),
    ],
)
def test_values_that_no_target_produces(
    tmp_path: Path, format: str, name: str, index: int, value: float
) -> None:
    """Written by a writer that did not look: every crc matches."""
    identity = make_identity(chunk_tokens=4, **FORMATS[format])
    shards = make_shards(identity)
    columns = shards[0][0][1].columns()
    (columns["aux"][:, 0] if name == "aux_1" else columns[name])[5] = value
    folder = write_dump(str(tmp_path), identity, shards)
    problems, key = named(tmp_path), chunk_key(folder, identity, name, index)
    assert [*problems] == [key]
    what = "outside the vocabulary" if name == "argmax" else "not a number"
    assert what in problems[key]
    for read in reads_of(tmp_path):
        with pytest.raises(IntegrityError, match=what):
            read()


@pytest.mark.parametrize("token_id", [23, -1])
def test_token_ids_out_of_range(tmp_path: Path, identity: DumpIdentity, token_id: int) -> None:
    shards = make_shards(identity)
    sample, states = shards[0][1]
    sample.input_ids[3] = token_id
    renamed = Sample(sample.input_ids, sample.loss_mask, sample.source).sample_id
    shards[0][1] = (replace(sample, sample_id=renamed), states)
    write_dump(str(tmp_path), identity, shards)
    problems = named(tmp_path)
    assert [*problems] == [f"{SHARD}/samples.parquet"]
    assert "outside the vocabulary of 23" in problems[f"{SHARD}/samples.parquet"]
    with pytest.raises(IntegrityError, match="outside the vocabulary of 23"):
        Dump.open(str(tmp_path)).shard(0).samples()
