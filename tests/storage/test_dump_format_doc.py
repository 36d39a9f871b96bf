"""What docs/dump-format.md shows is run, and what it states of the format is the code's."""

import re
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.records.dump import (
    DumpHeader,
    DumpIdentity,
    DumpIndex,
    DumpTotals,
    GenerationCounts,
    ObjectEntry,
    ShardManifest,
    TargetIdentity,
    TextOrigin,
)
from specpipe.stages.storage.chunks.arrays import array_names, planned_chunks, shard_arrays
from specpipe.stages.storage.chunks.codec import chunk_codec
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.samples import stored_schema
from tests.storage.tiny import make_identity

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "dump-format.md").read_text()
MODES: list[dict[str, Any]] = [
    {},
    {"logits": "topk:5", "states_dtype": "int8"},
    {"logits": "full", "shard_format": "parquet"},
]


def rows_of(name: str) -> list[list[str]]:
    """The cells of the table rows about a name."""
    rows = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("|")]
    return [row for row in rows if f"`{name}`" in row[0]]


def test_the_snippet_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(REPOSITORY)
    names: dict[str, object] = {}
    exec(compile(snippet, "docs/dump-format.md", "exec"), names)
    samples = Dump.open("tests/golden/dump-v1").shard(0).samples()
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{s.sample_id} {s.num_tokens} ({s.num_tokens}, 2, 4)" for s in samples]
    aux_float = names["aux_float"]
    # The first values of the golden dump: the bits 0x3C00 + 1000 and the next.
    assert aux_float[0, 0, :2].tolist() == [1.8125, 1.8203125]  # type: ignore[index]


@pytest.mark.parametrize(
    "record",
    [
        DumpHeader,
        DumpIdentity,
        DumpIndex,
        DumpTotals,
        GenerationCounts,
        ObjectEntry,
        ShardManifest,
        TargetIdentity,
        TextOrigin,
    ],
)
def test_every_field_of_every_record_is_described(record: type[DumpHeader]) -> None:
    missing = [name for name in record.model_fields if f"`{name}`" not in TEXT]
    assert missing == []


def test_every_column_is_described() -> None:
    for name in stored_schema([]).names:
        kind = re.sub(r"list<\w+: (\w+)>", r"list of \1", str(stored_schema([]).field(name).type))
        assert any(kind in cells[1] for cells in rows_of(name)), name


def test_every_choice_of_a_format_is_described() -> None:
    for field in ("shard_format", "states_dtype", "compression", "backend"):
        choices = DumpIdentity.model_fields[field].annotation.__args__  # type: ignore[union-attr]
        assert all(f'`"{choice}"`' in rows_of(field)[0][1] for choice in choices), field


@pytest.mark.parametrize("mode", MODES)
def test_every_array_is_described(mode: dict[str, Any]) -> None:
    identity = make_identity(**mode)
    arrays = shard_arrays(identity, 1, 1, planned_chunks(identity, 1, 1))
    letters = {"token": "T", "row": "S", "layer": "L", "hidden": "H", "rank": "K", "token_id": "V"}
    described = re.findall(r"^\| `(\w+)` \| \[", TEXT, re.MULTILINE)
    layers = [f"aux_{layer}" for layer in identity.layers]
    for array in arrays.values():
        name = "aux_ID" if array.name in layers else array.name
        [(_, shape, dtype, dimensions, where, _)] = [row for row in rows_of(name) if len(row) == 6]
        assert dimensions == ", ".join(array.dimensions)
        assert shape == f"[{', '.join(letters[name] for name in array.dimensions)}]"
        assert array.dtype.name in dtype
        assert ("bfloat16" in dtype) == array.is_bfloat16 or name == "aux_ID"
        in_mode = f"mode `{identity.logits.replace('5', 'K')}`"
        assert where in ("every dump", in_mode, f"{identity.states_dtype} states")
    # The columns of crcs stand in the order of the table.
    at = described.index("aux_ID")
    described[at : at + 1] = layers
    assert [name for name in described if name in arrays] == [*array_names(identity)]


def test_the_keys_of_chunks_are_described() -> None:
    identity = make_identity(states_dtype="int8")
    arrays = shard_arrays(identity, 9, 9, planned_chunks(identity, 9, 9))
    zarr = chunk_codec(identity)
    names = [zarr.chunk_name(arrays[name], 1) for name in ("logz", "aux_scale", "aux_3")]
    assert names == [
        "states.zarr/logz/c/1",
        "states.zarr/aux_scale/c/1/0",
        "states.zarr/aux_3/c/1/0",
    ]
    parquet = chunk_codec(make_identity(shard_format="parquet"))
    assert parquet.chunk_name(arrays["aux_1"], 12) == "states.parquet/aux_1/000012.parquet"
    assert "ARRAY/c/I, ARRAY/c/I/0 " in TEXT
    assert "ARRAY/IIIIII.parquet" in TEXT
