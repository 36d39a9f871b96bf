"""Which files a URL stands for, on any store, and what a store that fails looks like."""

import gzip
import os
import posixpath
import zipfile
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from specpipe.schemas.errors import ConfigError, InputError, StoreError
from specpipe.stages.text.input.files import input_files
from specpipe.stages.text.input.rows import read_rows
from specpipe.stages.text.rejected import Rejections
from tests.s3 import S3Server

TREE = [
    "b.jsonl",
    "a.jsonl.gz",
    "c.json",
    "d.ndjson",
    "e.parquet",
    "deep/er/f.jsonl.zst",
    "deep/b.jsonl",
    "notes.txt",
    ".hidden.jsonl",
    ".cache/g.jsonl",
    "b.rejected.jsonl",
    "b.provenance.json",
    "q[1].jsonl",
]
OF_THE_FOLDER = [
    "a.jsonl.gz",
    "b.jsonl",
    "c.json",
    "d.ndjson",
    "deep/b.jsonl",
    "deep/er/f.jsonl.zst",
    "e.parquet",
    "q[1].jsonl",
]


def plant(root: str) -> None:
    for name in TREE:
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(b'{"text": "yo"}\n')


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_root"))
    return str(tmp_path) if request.param == "local" else f"memory://{uuid4().hex}"


def names(root: str, *patterns: str) -> list[str]:
    urls = [f"{root}/{pattern}".rstrip("/") for pattern in patterns]
    return [below(root, file.name) for file in input_files(urls)]


def below(root: str, name: str) -> str:
    return name.partition(posixpath.basename(root) + "/")[2]


NAMES = ("d::x.jsonl", "file::x.jsonl", "a#b.jsonl", "a?b.jsonl", "a%20b+c d.jsonl", "é.jsonl")


@pytest.mark.parametrize("root", ["local", "s3"], indirect=True)
def test_any_name(root: str) -> None:
    """fsspec takes `::` for a file system within another, and `?` is no query of S3."""
    protocol = root.partition("://")[0] if "://" in root else "file"
    filesystem = fsspec.filesystem(protocol)
    for number, name in enumerate(NAMES):
        with filesystem.open(f"{filesystem._strip_protocol(root)}/{name}", "wb") as file:
            file.write(b'{"text": "%d"}\n' % number)
    for number, name in enumerate(NAMES):
        ((_, row),) = read_rows([f"{root}/{name}"], Rejections(0))
        assert row == {"text": str(number)}
    rows = read_rows([root], Rejections(0))
    found = {below(root, source.file): int(row["text"]) for source, row in rows}
    expected = dict(zip(NAMES, range(len(NAMES)), strict=True))
    assert found == expected


def test_a_file_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.jsonl", '{"text": "yo"}\n')
    monkeypatch.chdir(tmp_path)
    for url in (f"zip://x.jsonl::{tmp_path}/a.zip", "zip://x.jsonl::a.zip"):
        ((_, row),) = read_rows([url], Rejections(0))
        assert row == {"text": "yo"}
    (tmp_path / "d::x.jsonl").write_text('{"text": "so"}\n')
    ((source, row),) = read_rows(["d::x.jsonl"], Rejections(0))
    assert row == {"text": "so"}
    assert source.file == "d::x.jsonl"


def test_folders_and_globs_on_any_store(root: str) -> None:
    plant(root)
    assert names(root, "") == OF_THE_FOLDER
    assert names(root, "deep") == ["deep/b.jsonl", "deep/er/f.jsonl.zst"]
    assert names(root, "b.jsonl", "a.jsonl.gz") == ["b.jsonl", "a.jsonl.gz"]
    assert names(root, "*.jsonl") == ["b.jsonl", "q[1].jsonl"]
    assert names(root, "[ab].jsonl*") == ["a.jsonl.gz", "b.jsonl"]
    assert names(root, "*/*.jsonl") == ["deep/b.jsonl"]
    assert names(root, "**/*.jsonl") == ["b.jsonl", "deep/b.jsonl", "q[1].jsonl"]
    assert names(root, "?eep/**") == ["deep/b.jsonl", "deep/er/f.jsonl.zst"]
    assert names(root, "q[1].jsonl") == ["q[1].jsonl"]
    assert names(root, "notes.txt") == ["notes.txt"]
    for url, message in [
        ("no.jsonl", "no such file"),
        ("b.jsonl/x.jsonl", "no such file"),
        ("*.csv", "nothing matches"),
        ("no/*.jsonl", "nothing matches"),
    ]:
        with pytest.raises(ConfigError, match=message):
            names(root, url)


def test_rows_of_every_store(root: str) -> None:
    for name, text in [("a.jsonl.gz", "a"), ("b.jsonl.gz", "b")]:
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(gzip.compress(f'{{"text": "{text}"}}\n{{"text": 1'.encode()))
    rejections = Rejections(2)
    rows = [
        (below(root, str(source)), row["text"]) for source, row in read_rows([root], rejections)
    ]
    assert rows == [("a.jsonl.gz:1", "a"), ("b.jsonl.gz:1", "b")]
    refused = [below(root, str(one.source)) for one in rejections.of_input]
    assert refused == ["a.jsonl.gz:2", "b.jsonl.gz:2"]


def test_a_folder_without_inputs_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"a folder without .jsonl.* \(it holds notes.txt\)"):
        input_files([str(tmp_path)])


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "yo"}\n')
    with pytest.raises(ConfigError, match=r"\\udcff.jsonl.*the file's name is no text"):
        input_files([str(tmp_path)])


def test_links_are_followed(tmp_path: Path) -> None:
    plant(str(tmp_path / "there"))
    here = tmp_path / "here"
    here.mkdir()
    (here / "folder").symlink_to(tmp_path / "there" / "deep")
    (here / "a.jsonl").symlink_to(tmp_path / "there" / "b.jsonl")
    assert names(str(here), "") == ["a.jsonl", "folder/b.jsonl", "folder/er/f.jsonl.zst"]
    assert names(str(here), "*.jsonl") == ["a.jsonl"]
    assert names(str(here), "folder") == ["folder/b.jsonl", "folder/er/f.jsonl.zst"]
    (here / "folder" / "loop").symlink_to(tmp_path / "there")
    with pytest.raises(ConfigError, match="folder/loop: the link leads back"):
        names(str(here), "")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs tries again by itself; botocore, below it, would wait for half a minute in all."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.mark.parametrize("pattern", ["", "/*.jsonl", "/b.jsonl"])
def test_a_store_that_fails_is_not_an_absent_file(
    s3_server: S3Server, s3_root: str, impatient: None, pattern: str
) -> None:
    plant(s3_root)
    s3_server.fault = lambda request: "500"
    with pytest.raises(StoreError) as caught:
        input_files([f"{s3_root}{pattern}"])
    assert caught.value.exit_code == 6


def test_a_host_that_refuses_is_not_an_absent_file() -> None:
    with pytest.raises(StoreError, match=r"a\.jsonl: Cannot connect"):
        input_files(["http://127.0.0.1:9/a.jsonl"])


def test_a_folder_that_cannot_be_listed_is_not_left_out(
    s3_server: S3Server, s3_root: str, impatient: None
) -> None:
    plant(s3_root)
    s3_server.fault = lambda request: "500" if "prefix=root%2Fdeep" in request.query else None
    with pytest.raises(StoreError):
        input_files([s3_root])


def test_a_store_that_fails_in_the_middle(
    s3_server: S3Server, s3_root: str, impatient: None
) -> None:
    plant(s3_root)
    rows = read_rows([f"{s3_root}/*.jsonl"], Rejections(9))
    next(rows)
    s3_server.fault = lambda request: "500"
    with pytest.raises(StoreError, match=r"q\[1\]\.jsonl"):
        list(rows)


def test_an_unknown_store_and_secrets_in_its_url() -> None:
    with pytest.raises(ConfigError, match=r"^data nosuch://host/x: "):
        input_files(["nosuch://user:secret@host/x"])


def test_a_file_that_vanished(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "yo"}\n')
    rows = read_rows([str(path), str(path)], Rejections(0))
    next(rows)
    path.unlink()
    with pytest.raises((StoreError, InputError), match=r"a\.jsonl"):
        list(rows)
