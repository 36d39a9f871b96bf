"""Small files that hold much: refused, within a stated memory; long contexts are not refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import sample_from_pretokenized
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.input.json_rows import LONGEST_LINE
from specpipe.stages.text.input.rows import read_rows
from specpipe.stages.text.mask import tokens
from specpipe.stages.text.prompts import read_prompts
from specpipe.stages.text.rejected import Rejections
from specpipe.stages.text.samples import iterate_samples
from tests.dump.conftest import Row, write_lines
from tests.text.chat_families import QWEN, chat, save_family

MOST_MIB = 1024
"""What docs/operations.md states of a row before it is tokenised."""

READ = """
import sys
from scripts.bench.resident import peak
from specpipe.schemas.errors import InputError
from specpipe.stages.text.rejected import Rejections
from specpipe.stages.text.input.rows import read_rows

def grown() -> int:
    return (peak() - before) // 2**20

before = peak()
try:
    kept = sum(1 for _ in read_rows(sys.argv[1:], Rejections(0)))
    print(grown(), "kept", kept)
except InputError as error:
    print(grown(), error)
"""


def read_apart(path: Path) -> tuple[int, str]:
    """MiB that another process needs for the file's rows, and what became of them."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True
    )
    size, _, words = done.stdout.strip().partition(" ")
    return int(size), words


def compressed(path: Path, begin: bytes, repeated: bytes, num: int, end: bytes) -> Path:
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as out:
        out.write(begin)
        block = repeated * (2**20 // len(repeated))
        for _ in range(num // len(block)):
            out.write(block)
        out.write(end + b"\n")
    assert path.stat().st_size < 2**18
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begin", "repeated", "num_mib", "end", "words"),
    [
        (b'{"text": "', b"a", 200, b'"}', "a line of more than 67108864 bytes"),
        (b'{"text": [', b"[],", 60, b"0]}", ".zst:1: JSON with more than 8388608 commas"),
        (b'{"text": "\xf0\x9f\x98\x80', b"a", 60, b'"}', "kept 1"),
    ],
)
def test_lines_of_much(
    tmp_path: Path, begin: bytes, repeated: bytes, num_mib: int, end: bytes, words: str
) -> None:
    path = tmp_path / "data.jsonl.zst"
    size, said = read_apart(compressed(path, begin, repeated, num_mib * 2**20, end))
    assert words in said
    assert size < MOST_MIB


@pytest.mark.slow
def test_parquet_of_much(tmp_path: Path) -> None:
    """One text in every row, and one list of very many small numbers: about a kilobyte each."""
    path = tmp_path / "data.parquet"
    text = pa.array(["yo " * 1_000_000]).dictionary_encode()
    texts = pa.DictionaryArray.from_arrays(np.zeros(100, np.int32), text.dictionary)
    pq.write_table(pa.table({"text": texts}), path, compression="zstd")
    assert path.stat().st_size < 2**14
    size, said = read_apart(path)
    assert said == "kept 100"
    assert size < MOST_MIB
    ids = pa.ListArray.from_arrays([0, 80_000_000], pa.array(np.ones(80_000_000, np.int32)))
    pq.write_table(pa.table({"input_ids": ids}), path, compression="zstd")
    del ids
    assert path.stat().st_size < 2**14
    size, said = read_apart(path)
    assert "data.parquet" in said
    assert "more than" in said
    assert size < 2 * MOST_MIB


@pytest.mark.slow
def test_the_most_that_json_can_hold(tmp_path: Path) -> None:
    num = 8_388_608 // 4 * 7 - 100
    path = tmp_path / "data.jsonl.zst"
    size, said = read_apart(compressed(path, b'{"text": [', b"[[[]]],", num, b"0]}"))
    assert said == "kept 1"
    assert size < MOST_MIB


def test_a_context_of_a_million_tokens(tmp_path: Path) -> None:
    num = 1_000_000
    ids = [150_000 + at % 1000 for at in range(num)]
    row = {"input_ids": ids, "attention_mask": [1] * num, "labels": [-100, *ids[1:]]}
    path = write_lines(tmp_path / "data.jsonl", [row])
    assert path.stat().st_size < LONGEST_LINE // 2
    ((source, read),) = read_rows([str(path)], Rejections(0))
    assert sample_from_pretokenized(read, source, 200_000).num_tokens == num


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of 100 bytes are the longest."""
    monkeypatch.setattr(tokens, "LONGEST_TEXT", 100)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "row",
    [
        {"text": "y " * 200},
        {"prompt": "y " * 200, "completion": "y"},
        {"prompt": "y", "completion": "y " * 200},
        {"prompt": "y", "completion": "é" * 60},
        {"messages": chat("y " * 200, "y")},
    ],
)
def test_texts_that_are_too_long_to_be_tokenised(tmp_path: Path, row: Row) -> None:
    template = ChatTemplate(save_family(tmp_path, QWEN))
    data = [str(write_lines(tmp_path / "data.jsonl", [row]))]
    refused = r"data\.jsonl:1: a text of \d+ bytes, more than the 100 that are tokenised"
    with pytest.raises(InputError, match=refused):
        list(iterate_samples(data, template, 10_000, 1000, Rejections(0)))
    if row.get("prompt") != "y":
        with pytest.raises(InputError, match=refused):
            read_prompts(data, template, 10_000, 1000, GenerateConfig(), Rejections(0))


@pytest.mark.usefixtures("short")
def test_the_beginning_of_a_text_is_enough(tmp_path: Path) -> None:
    """Where the context length wants no more of it."""
    template = ChatTemplate(save_family(tmp_path, QWEN))
    texts = [{"text": "y " * num} for num in (45, 2000)]
    data = write_lines(tmp_path / "data.jsonl", texts)
    first, second = iterate_samples([str(data)], template, 10_000, 20, Rejections(0))
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert first.num_tokens == 20
