"""Every store behaves alike; keys stay inside the root; addresses hold no secrets."""

import os
import threading
from pathlib import Path

import pytest

from specpipe.schemas.errors import ConfigError, IntegrityError, StoreError
from specpipe.schemas.location import without_credentials
from specpipe.stages.storage.store.folder import Folder, place_of_file
from specpipe.stages.storage.store.lock import locked


def test_write_read_and_replace(root: str) -> None:
    folder = Folder.open(root)
    folder.write("a/b/c.bin", b"0123456789")
    assert folder.read("a/b/c.bin") == b"0123456789"
    assert folder.read("a/b/c.bin", 2, 5) == b"234"
    assert folder.read("a/b/c.bin", 8, 20) == b"89"
    assert folder.size("a/b/c.bin") == 10
    folder.write("a/b/c.bin", memoryview(b"new"))
    assert folder.read("a/b/c.bin") == b"new"
    folder.write("empty", b"")
    assert folder.read("empty") == b""
    assert folder.size("empty") == 0


def test_blocks_are_handed_over_from_a_position(root: str) -> None:
    folder = Folder.open(root)
    folder.write("object", b"0123456789")
    taken: list[tuple[int, bytes]] = []

    def take(number: int, block: memoryview) -> None:
        taken.append((number, bytes(block)))

    folder.read_blocks("object", 4, [3, 0, 2], take)
    assert taken == [(0, b"456"), (1, b""), (2, b"78")]
    with pytest.raises(IntegrityError, match=r"object is truncated"):
        folder.read_blocks("object", 8, [3], take)
    assert len(taken) == 3


def test_create_refuses_an_existing_object(root: str) -> None:
    folder = Folder.open(root)
    assert folder.create("x/manifest.json", b"first")
    assert not folder.create("x/manifest.json", b"second")
    assert folder.read("x/manifest.json") == b"first"


def test_a_missing_object(root: str) -> None:
    folder = Folder.open(root)
    assert folder.list() == []
    assert folder.list("nowhere") == []
    for _ in range(2):
        assert not folder.exists("a/b")
        assert folder.size("a/b") is None
        with pytest.raises(IntegrityError, match=r"a/b is missing"):
            folder.read("a/b")
        with pytest.raises(IntegrityError, match=r"a/b is missing"):
            folder.read_blocks("a/b", 0, [1], lambda number, block: None)
        folder.remove("a/b")
        folder.write("other", b"")  # The second time, the root exists.


def test_list_and_remove(root: str) -> None:
    folder = Folder.open(root)
    for key in ("b/2", "b/1", "a", "b/c/3", "bb"):
        folder.write(key, b"x" * len(key))
    assert folder.list() == ["a", "b/1", "b/2", "b/c/3", "bb"]
    assert folder.list("b") == ["b/1", "b/2", "b/c/3"]
    assert folder.sizes("b/c") == {"b/c/3": 5}
    assert not folder.exists("b")
    folder.remove("b")
    assert folder.list() == ["a", "bb"]
    folder.remove("a")
    assert folder.list() == ["bb"]


def test_child_is_a_folder_of_the_same_store(root: str) -> None:
    folder = Folder.open(root)
    folder.child("target").write("config.json", b"{}")
    assert folder.list() == ["target/config.json"]
    assert folder.child("target").list() == ["config.json"]
    assert folder.child("target").url == f"{folder.url}/target"


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x", "a//b", "", "./a"])
def test_no_key_leads_out_of_the_root(root: str, key: str) -> None:
    folder = Folder.open(root)
    with pytest.raises(IntegrityError, match="leads out of"):
        folder.read(key)
    with pytest.raises(IntegrityError, match="leads out of"):
        folder.write(key, b"")
    with pytest.raises(IntegrityError, match="leads out of"):
        folder.remove(key)


def test_half_written_files_are_never_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".tmp-0123-x").write_bytes(b"half")
    assert Folder.open(str(tmp_path)).list() == []


def test_listing_while_others_write(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    folder.write("shards/steady", b"")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            folder.write("shards/busy", b"x")
            folder.remove("shards/busy")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            assert set(folder.list("shards")) - {"shards/busy"} == {"shards/steady"}
    finally:
        done.set()
        writer.join()


def test_a_store_that_refuses_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = Folder.open(str(tmp_path))
    with pytest.raises(StoreError, match=r"cannot write .*file/below"):
        folder.write("file/below", b"x")
    with pytest.raises(StoreError, match=r"cannot create .*file/below"):
        folder.create("file/below", b"x")


def test_an_unknown_protocol_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        Folder.open("nosuch://user:secret@bucket/dump")


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("s3://key:secret@bucket/dump", "s3://bucket/dump"),
        ("https://host/dump?token=secret", "https://host/dump"),
        ("abfs://container@account/dump", "abfs://container@account/dump"),
        ("/data/a b", "/data/a b"),
        ("data/part-?.jsonl", "data/part-?.jsonl"),
        ("s3://key:se/cr@et@bucket/dump", "s3://bucket/dump"),
        ("https://token@host/dump", "https://host/dump"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("simplecache::ftp://me:p@ss@host/dump", "simplecache::ftp://host/dump"),
        ('{"dump": "s3://k:s@b/d?sig=1", "n": 1}', '{"dump": "s3://b/d", "n": 1}'),
    ],
)
def test_addresses_hold_no_credentials(url: str, printed: str) -> None:
    assert without_credentials(url) == printed


@pytest.mark.parametrize("url", ["s3://bucket/a#b", "s3://bucket/a?b=secret"])
def test_a_key_that_an_s3_url_cannot_hold_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^s3://bucket/a: .*without \? or # in the key"):
        Folder.open(url)


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    """`shards` may lie on another disk."""
    folder = Folder.open(str(tmp_path / "dump"))
    folder.write("here", b"1")
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "dump" / "shards").symlink_to(other, target_is_directory=True)
    folder.write("shards/a/b", b"22")
    assert (other / "a" / "b").read_bytes() == b"22"
    # Links that go round, or out, or nowhere.
    (other / "a" / "up").symlink_to(tmp_path / "dump", target_is_directory=True)
    (other / "out").symlink_to("/", target_is_directory=True)
    (other / "nowhere").symlink_to(tmp_path / "gone")
    assert folder.sizes() == {"here": 1, "shards/a/b": 2}
    assert folder.sizes("shards") == {"shards/a/b": 2}
    assert folder.sizes(links=False) == {"here": 1}


def test_what_is_no_file_is_never_read(tmp_path: Path) -> None:
    """A pipe would wait for a writer for ever, a device would never end."""
    folder = Folder.open(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(IntegrityError, match="a pipe, a socket or a device, not a file"):
            folder.read(name)
        with pytest.raises(IntegrityError, match="not a file"):
            folder.read_blocks(name, 0, [1], lambda number, block: None)


def test_a_small_object_has_a_bound(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(IntegrityError, match="more than 268435456 bytes"):
        Folder.open(str(tmp_path)).read_small("sparse")


@pytest.mark.parametrize("below", ["", "/new", "/new/er"])
def test_a_file_in_the_place_of_a_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    place = f"{tmp_path}/file{below}"
    with pytest.raises(ConfigError, match=rf"{tmp_path}/file is a file"):
        Folder.open(place).check_writable()
    with pytest.raises(ConfigError, match=rf"{tmp_path}/file is a file"), locked(Path(place), ""):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("page.html", f"{tmp_path}/page.html"):
        folder, name = place_of_file(url)
        assert (folder.url, name) == (str(tmp_path), "page.html")
    for url in ("memory://pages/", f"{tmp_path}/new/", str(tmp_path), "."):
        with pytest.raises(ConfigError, match="is a folder"):
            place_of_file(url)
