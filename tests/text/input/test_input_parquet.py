"""Parquet inputs: every way to write the columns, and what is refused."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import Source, sample_from_pretokenized
from specpipe.stages.text.input.rows import Row, read_rows
from specpipe.stages.text.rejected import Rejections

IDS = [5, 6, 7, 8]
CALLS = [{"function": {"name": "f", "arguments": {"a": 1}}}]
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "assistant", "content": "yo", "reasoning": "hm"},
]


def read(path: Path, rejections: Rejections | None = None) -> list[Row]:
    return [row for _, row in read_rows([str(path)], rejections or Rejections(0))]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize(
    "type_",
    [
        pa.list_(pa.int8()),
        pa.list_(pa.uint16()),
        pa.list_(pa.int32()),
        pa.list_(pa.int64()),
        pa.list_(pa.uint64()),
        pa.large_list(pa.int64()),
        pa.list_(pa.int32(), 4),
    ],
)
def test_lists_of_integers_of_any_width(tmp_path: Path, type_: pa.DataType) -> None:
    ids = pa.array([IDS, IDS[::-1]], type_)
    path = write(
        tmp_path / "data.parquet",
        {
            "input_ids": ids,
            "attention_mask": pa.array([[1] * 4] * 2),
            "labels": ids,
            "other": [1, 2],
        },
    )
    first, second = read(path)
    assert set(first) == {"input_ids", "attention_mask", "labels"}
    sample = sample_from_pretokenized(second, Source("f", 2), 10)
    assert sample.input_ids.tolist() == IDS[::-1]
    assert first["input_ids"].dtype == np.int64


def test_messages_as_structs_or_as_text_are_the_same(tmp_path: Path) -> None:
    """What is null in a column of structs was not there."""
    structs = write(tmp_path / "a.parquet", {"messages": [CHAT, CHAT[:1]]})
    texts = [json.dumps(CHAT), json.dumps(CHAT[:1])]
    large = pa.array([CHAT, CHAT[:1]], pa.large_list(pa.array(CHAT).type))
    bare = [{key: value for key, value in m.items() if value is not None} for m in CHAT]
    assert read(structs) == [{"messages": bare}, {"messages": CHAT[:1]}]
    assert read(write(tmp_path / "b.pq", {"messages": large})) == read(structs)
    assert read(write(tmp_path / "c.parquet", {"messages": texts})) == [
        {"messages": CHAT},
        {"messages": CHAT[:1]},
    ]


def test_arguments_as_a_map(tmp_path: Path) -> None:
    def table(pairs: list[tuple[str, str]]) -> dict[str, Any]:
        arguments = pa.array([pairs], pa.map_(pa.string(), pa.string()))
        message = pa.StructArray.from_arrays(
            [pa.array(["assistant"]), arguments], names=["role", "arguments"]
        )
        return {"messages": pa.ListArray.from_arrays(pa.array([0, 1]), message)}

    path = write(tmp_path / "a.parquet", table([("a", "1"), ("b", "2")]))
    assert read(path)[0]["messages"][0]["arguments"] == {"a": "1", "b": "2"}
    path = write(tmp_path / "b.parquet", table([("a", "1"), ("a", "2")]))
    with pytest.raises(InputError, match=r"b\.parquet:1: .*map with a key that stands twice"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [IDS, None]}, ":2: neither 'messages' nor 'input_ids' nor 'text'"),
        ({"input_ids": [[5, None, 7]]}, ":1: column 'input_ids' holds a null among its integers"),
        ({"input_ids": [[5.0, 6.0]]}, ":1: column 'input_ids' holds .*not lists of integers"),
        ({"input_ids": ["5 6"]}, ":1: column 'input_ids' holds string"),
        ({"input_ids": pa.array([[2**63]], pa.list_(pa.uint64()))}, ":1: .*beyond 64 bits"),
        ({"messages": ["[1, 2"]}, ":1: column 'messages': malformed JSON"),
        ({"messages": ['["\\ud800"]']}, ":1: column 'messages': holds half a surrogate pair"),
        ({"text": ["a", None]}, ":2: neither"),
        ({"text": ["a", "b"], "messages": ["[]", None]}, ":1: both 'messages' and 'text'"),
        (
            {"prompts": ["a"]},
            ": no column is named messages, text or input_ids, .* but: prompts; rename",
        ),
        ({"text": pa.array([], pa.string())}, ": the file is empty"),
    ],
)
def test_refused_columns(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "data.parquet", columns)
    with pytest.raises(InputError, match=rf"data\.parquet{message}"):
        read(path)


def test_text_that_is_not_utf8_is_one_refused_row(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    rejections = Rejections(1)
    assert read(write(tmp_path / "data.parquet", {"text": raw}), rejections) == [
        {"text": "a"},
        {"text": "c"},
    ]
    (refused,) = rejections.of_input
    assert refused.source.line == 2
    assert "column 'text' is not UTF-8" in refused.reason


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(InputError, match="two columns have the same name"):
        read(tmp_path / "data.parquet")


@pytest.mark.parametrize("damage", ["cut", "no end", "a page", "nothing in it"])
def test_damaged_files_stop_the_run(tmp_path: Path, damage: str) -> None:
    texts = [f"{number} " + "yo" * 50 for number in range(3000)]
    options = {"row_group_size": 500, "write_page_checksum": True, "compression": "none"}
    path = write(tmp_path / "data.parquet", {"text": texts}, use_dictionary=False, **options)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "no end":
        del data[-1:]
    elif damage == "a page":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray()
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"data\.parquet: not a readable Parquet file: .* row \d+"):
        read(path, Rejections(10**6))


@pytest.mark.parametrize("rows_of_a_group", [1000, 40_000])
def test_large_files_are_read_as_a_stream(tmp_path: Path, rows_of_a_group: int) -> None:
    """Neither Python nor Arrow ever holds more than a little of them."""
    random = np.random.default_rng(0)
    texts = [random.bytes(1000).hex() for _ in range(40_000)]
    path = write(
        tmp_path / "data.parquet",
        {"text": texts},
        row_group_size=rows_of_a_group,
        compression="none",
        use_dictionary=False,
    )
    del texts
    assert path.stat().st_size > 70 * 2**20
    pool = pa.default_memory_pool()
    held = pool.bytes_allocated()
    most = num_rows = 0
    tracemalloc.start()
    for _ in read_rows([str(path)], Rejections(0)):
        num_rows += 1
        most = max(most, pool.bytes_allocated() - held)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 40_000
    assert most < 16 * 2**20
    assert peak < 16 * 2**20
