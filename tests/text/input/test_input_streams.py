"""What input files may be: compressions, line ends, sizes; and how their damages are told."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.local import LocalFileSystem

from specpipe.schemas.errors import InputError, StoreError
from specpipe.schemas.records.sample import Source
from specpipe.stages.text.input.files import InputFile, input_files
from specpipe.stages.text.input.json_rows import json_rows
from specpipe.stages.text.input.parquet_rows import parquet_rows
from specpipe.stages.text.input.rows import Row, read_rows
from specpipe.stages.text.rejected import Rejections, from_jsonl, to_jsonl
from specpipe.stages.untrusted.json_text import parse_json

LINES = b"".join(b'{"text": "line %d"}\n' % number for number in range(1, 2001))


def zipped(text: bytes, name: str = "data.jsonl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return file.getvalue()


def zstd(text: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(text)


def streamed_zstd(text: bytes) -> bytes:
    """Without its size in the header, as `zstd -c` in a pipe leaves it out."""
    made = zstandard.ZstdCompressor().compressobj()
    return made.compress(text) + made.flush()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "bz2": bz2.compress,
    # The fastest: the default takes seconds.
    "xz": partial(lzma.compress, preset=0),
    "zip": zipped,
}
WORDS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2", "xz": "xz", "zip": "zip"}


def texts(path: object, rejections: Rejections | None = None) -> list[str]:
    found = read_rows([str(path)], rejections or Rejections(0))
    return [row["text"] for _, row in found]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.jsonl.{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](LINES))
    found = list(read_rows([str(path)], Rejections(0)))
    assert [row["text"] for _, row in found] == [f"line {number}" for number in range(1, 2001)]
    assert found[-1][0] == Source(str(path), 2000)


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_files_compressed_in_several_pieces(tmp_path: Path, suffix: str) -> None:
    """As `cat a.gz b.gz` or a parallel compressor makes them; a line may lie in two pieces."""
    compress = COMPRESSIONS[suffix]
    pieces = [compress(LINES[:5003]), compress(b""), compress(LINES[5003:])]
    if suffix == "zst":
        skippable = bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"skip"
        pieces = [pieces[0], skippable, pieces[1], streamed_zstd(LINES[5003:])]
    path = tmp_path / f"data.jsonl.{suffix}"
    path.write_bytes(b"".join(pieces))
    assert texts(path) == [f"line {number}" for number in range(1, 2001)]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("damage", ["cut", "one byte short", "another format", "a bit"])
def test_damaged_compressed_files_stop_the_run(tmp_path: Path, suffix: str, damage: str) -> None:
    """Whatever --max-rejected says: nobody can tell how much was lost."""
    data = bytearray(COMPRESSIONS[suffix](LINES))
    if damage == "cut":
        del data[len(data) * 2 // 3 :]
    elif damage == "one byte short":
        del data[-1:]
    elif damage == "another format":
        data = bytearray(LINES)
    else:
        data[len(data) // 2] ^= 16
    if suffix == "zst" and damage == "a bit":
        data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(LINES))
        data[len(data) // 2] ^= 16
    path = tmp_path / f"data.jsonl.{suffix}"
    path.write_bytes(data)
    message = rf"data\.jsonl\.{suffix}: not a readable {WORDS[suffix]} file: .* after line \d+$"
    with pytest.raises(InputError, match=message):
        texts(path, Rejections(10**6))


def test_a_damaged_file_names_the_last_good_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    lines = [b'{"text": "%d"}\n' % number for number in range(3)]
    packed = zlib.compressobj(wbits=31)
    whole = b"".join(packed.compress(line) + packed.flush(zlib.Z_FULL_FLUSH) for line in lines)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"after line 3$"):
        texts(path)


def test_a_suffix_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(gzip.compress(LINES))
    with pytest.raises(InputError, match=r"data\.jsonl:1: not UTF-8 \(byte 1\)"):
        texts(path)
    path = tmp_path / "data.parquet"
    path.write_bytes(LINES)
    with pytest.raises(InputError, match=r"data\.parquet: not a readable Parquet file"):
        texts(path)
    path = tmp_path / "data.parquet.gz"
    path.write_bytes(gzip.compress(LINES))
    assert len(texts(path)) == 2000


@pytest.mark.parametrize("suffix", ["", *(f".{suffix}" for suffix in COMPRESSIONS)])
def test_empty_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    compress = COMPRESSIONS.get(suffix[1:], bytes)
    path.write_bytes(compress(b""))
    with pytest.raises(InputError, match=r"the file is empty"):
        texts(path, Rejections(9))


def test_a_zip_of_several_files_or_with_a_password(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", "")
        archive.writestr("folder/a.jsonl", '{"text": "a"}')
        assert archive.namelist() == ["folder/", "folder/a.jsonl"]
    assert texts(path) == ["a"]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b.jsonl", '{"text": "b"}')
    with pytest.raises(InputError, match="it holds 2 files; zip one"):
        texts(path)
    locked = bytearray(zipped(b'{"text": "a"}\n'))
    locked[6] |= 1
    locked[locked.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    with pytest.raises(InputError, match="password"):
        texts(path)


@pytest.mark.parametrize(
    "data",
    [
        b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n',
        b'{"text": "a"}\r\n{"text": "b"}\r\n',
        b'{"text": "a"}\n{"text": "b"}',
        b' {"text": "a"} \n\t{"text": "b"}\n',
        '{"text": "a", "é": "\u2028\x85"}\n{"text": "b"}\n'.encode(),
        b'{"text": "a", "n": 1e999, "e": "\\ud83d\\ude00", "s": "\\\\ud800"}\n{"text": "b"}',
    ],
)
def test_lines_as_people_write_them(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data.ndjson"
    path.write_bytes(data)
    found = list(read_rows([str(path)], Rejections(0)))
    assert [(source.line, row["text"]) for source, row in found] == [(1, "a"), (2, "b")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\r", "a blank line"),
        (b"\xef\xbb\xbf", "malformed JSON"),
        ('{"text": "a"}'.encode("utf-16"), r"not UTF-8 \(byte 0\)"),
        (b'{"text": "a\xed\xa0\x80"}', "not UTF-8"),
        (b'{"text": "a", "n": Infinity}', "Infinity is no JSON number"),
        (b'{"text": "a", "n": -Infinity}', "-Infinity is no JSON number"),
        (b'{"text": "a", "\\udc00": 1}', "half a surrogate pair"),
        (b'{"text": "a"} {"text": "b"}', "malformed JSON"),
        (b'{"text": "a"}\r{"text": "b"}', "malformed JSON"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "malformed JSON"),
        (b'{"text": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, "nested deeper than 200"),
        (b'{"text": "a\x00b"}', "malformed JSON"),
        (b'{"text": null}', "neither 'messages' nor 'input_ids' nor 'text'"),
    ],
)
def test_refused_lines_are_named_and_counted(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    rejections = Rejections(2)
    assert texts(path, rejections) == ["a", "b"]
    kept = from_jsonl(to_jsonl(rejections.of_input).decode())
    assert kept == rejections.of_input
    assert {(one.kind, one.source.file) for one in kept} == {("refused", str(path))}
    assert kept[0].source.line == 2
    with pytest.raises(InputError, match=rf"data\.jsonl:2: .*{message}"):
        texts(path)


@pytest.mark.parametrize("data", [b'[{"text": "a"}]', b"[\n{}\n]\n", b"text\nhello\n", b"\xff\n"])
def test_a_file_of_another_form_says_what_is_wanted(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"data\.json:1: .*; a data file is Parquet .*jq -c"):
        texts(path)


def test_reasons_with_any_character_are_read_back() -> None:
    rejections = Rejections(1)
    rejections.refuse(Source("f", 1), "f:1: no role \u2028\x85\x1c\r\n here")
    assert from_jsonl(to_jsonl(rejections.of_input).decode()) == rejections.of_input


def test_the_longest_line(tmp_path: Path) -> None:
    def rows(*lines: bytes) -> list[str]:
        path = tmp_path / "data.jsonl"
        path.write_bytes(b"".join(lines))
        (file,) = input_files([str(path)])
        found = []
        for source, read in json_rows(file, longest=20):
            try:
                found.append(f"{source.line} {read()['text']}")
            except InputError as error:
                found.append(str(error).removeprefix(str(path)))
        return found

    def line(num_bytes: int, end: bytes) -> bytes:
        return b'{"text": "' + b"a" * (num_bytes - 12 - len(end)) + b'"}' + end

    for end in (b"\n", b"\r\n"):
        assert rows(line(20, end), line(18, end)) == [
            "1 " + "a" * (8 - len(end)),
            "2 " + "a" * (6 - len(end)),
        ]
    refused = ": a line of more than 20 bytes; is it one object per line?"
    for end in (b"\n", b"\r\n"):
        for num_bytes in (21, 22, 40, 41, 42, 3_000_000):
            found = rows(line(num_bytes, end), line(19, b"\n"), line(num_bytes, end))
            assert found == [f":1{refused}", "2 aaaaaa", f":3{refused}"]
    assert rows(line(20, b"")) == ["1 aaaaaaaa"]
    assert rows(line(21, b"")) == [f":1{refused}"]


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """The most bytes that Python held since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_huge_line_is_refused_without_being_held(
    tmp_path: Path, suffix: str, peak: Callable[[], int]
) -> None:
    path = tmp_path / f"data.jsonl.{suffix}"
    with fsspec.open(str(path), "wb", compression="infer") as out:
        for _ in range(300):
            out.write(b"[" * 2**20)
        out.write(b'\n{"text": "b"}\n')
    assert path.stat().st_size < 2**20
    (file,) = input_files([str(path)])
    before, pool = peak(), pa.default_memory_pool()
    held = pool.bytes_allocated()
    rows = json_rows(file, longest=2**20)
    _, first = next(rows)
    assert pool.bytes_allocated() - held < 12 * 2**20
    ((source, second),) = rows
    with pytest.raises(InputError, match="a line of more than 1048576 bytes"):
        first()
    assert (source.line, second()) == (2, {"text": "b"})
    assert peak() - before < 12 * 2**20


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_large_file_is_read_as_a_stream(
    tmp_path: Path, suffix: str, peak: Callable[[], int]
) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    text = "yo " * 10_000
    with fsspec.open(str(path), "wb", compression="infer") as out:
        for number in range(2000):
            out.write(json.dumps({"text": f"{number} {text}"}).encode() + b"\n")
    before = peak()
    numbers = [
        int(row["text"].split(" ", 1)[0]) for _, row in read_rows([str(path)], Rejections(0))
    ]
    assert numbers == list(range(2000))
    assert peak() - before < 8 * 2**20


def test_numbers_stay_numbers() -> None:
    value = parse_json('{"a": 1.5, "b": 12345678901234567890, "c": "NaN"}', "here")
    assert value == {"a": 1.5, "b": 12345678901234567890, "c": "NaN"}


class FailingFile:
    """A file of a store that goes away while it is read."""

    def __init__(self, data: bytes, sound: int) -> None:
        self._file = io.BytesIO(data)
        self._sound = sound

    def read(self, num_bytes: int) -> bytes:
        if self._file.tell() + num_bytes > self._sound:
            raise OSError("the store is away: https://user:secret@store/x")
        return self._file.read(num_bytes)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        pass


class FailingStore(LocalFileSystem):  # type: ignore[misc]
    def __init__(self, sound: int) -> None:
        super().__init__()
        self._sound = sound

    def open(self, path: str, mode: str = "rb", **options: object) -> FailingFile:
        return FailingFile(Path(path).read_bytes(), self._sound)


@pytest.mark.parametrize("suffix", ["jsonl", *COMPRESSIONS, "parquet"])
@pytest.mark.parametrize("sound", [0, 2**20])
def test_a_store_that_fails_is_no_damaged_file(tmp_path: Path, suffix: str, sound: int) -> None:
    """Exit code 6, not 3; and no secret in the text."""
    path = tmp_path / f"data.{suffix}"
    random = np.random.default_rng(0)
    noise = [{"text": random.bytes(500).hex()} for _ in range(5000)]
    lines = "".join(json.dumps(row) + "\n" for row in noise).encode()
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(noise), path, compression="none", use_dictionary=False)
    else:
        path.write_bytes(COMPRESSIONS.get(suffix, bytes)(lines))
    assert path.stat().st_size > 2**21
    (file,) = [InputFile(FailingStore(sound), str(path), "store://data")]
    assert file.is_parquet == (suffix == "parquet")
    rows: Iterator[tuple[Source, Callable[[], Row]]] = (
        parquet_rows(file) if file.is_parquet else json_rows(file)
    )
    with pytest.raises(
        StoreError, match=r"^store://data: the store is away: https://store/x$"
    ) as caught:
        for _ in rows:
            pass
    assert caught.value.exit_code == 6
