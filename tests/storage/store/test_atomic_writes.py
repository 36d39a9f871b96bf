"""Crashes, races and full disks: a name holds a whole object or none, and one writer wins."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from specpipe.schemas.errors import StoreError
from specpipe.schemas.records.dump import DumpIdentity
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.storage.shard.writer import ShardAttempt, ShardWriter
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.local_disk import TEMPORARY_PREFIX, write_file
from tests.storage.damages import FORMATS
from tests.storage.tiny import (
    Pair,
    concatenated,
    equal_states,
    make_identity,
    make_pair,
    make_shards,
    vocab_of,
    write_shard,
    write_tiny_scales,
)

ROUNDS = 40

# Arguments: root, own name. Waits for the file `go`, then claims every key; prints those it won.
CLAIM = f"""
import os, sys, time
from specpipe.stages.storage.store.folder import Folder
root, name = sys.argv[1:]
folder = Folder.open(root)
print("ready", flush=True)
while not os.path.exists(root + "/go"):
    time.sleep(0.001)
for i in range({ROUNDS}):
    if folder.create(f"claims/{{i}}", name.encode() * 1000):
        print(i, flush=True)
"""

# Arguments: root. Rewrites three objects for ever, each time whole and of one letter.
REWRITE = """
import itertools, sys
from specpipe.stages.storage.store.folder import Folder
folder = Folder.open(sys.argv[1])
print("ready", flush=True)
for i in itertools.count():
    folder.write(f"new/{i}", b"n" * 300_000)
    folder.write(f"same/{i % 2}", bytes([97 + i % 26]) * 3_000_000)
    folder.create(f"created/{i}", b"c" * 1_000_000)
"""

# Arguments: root, largest file in bytes. Prints the StoreError of the shard that does not fit.
LIMITED = """
import resource, sys
from specpipe.schemas.errors import StoreError
from specpipe.stages.storage.store.folder import Folder
from tests.storage.tiny import make_identity, make_pair, write_shard
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
identity = make_identity(24, hidden=256)
try:
    write_shard(Folder.open(sys.argv[1]), identity, 1, [make_pair(identity, 9, 60, [(1, 60)])])
except StoreError as error:
    print(error)
"""


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    )


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_process_wins_each_create(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    processes = [start(CLAIM, str(tmp_path), name) for name in names]
    assert [line_of(process) for process in processes] == ["ready"] * 3
    (tmp_path / "go").touch()
    won = {
        name: {int(i) for i in process.communicate(timeout=120)[0].split()}
        for name, process in zip(names, processes, strict=True)
    }
    assert Counter(i for wins in won.values() for i in wins) == Counter(range(ROUNDS))
    folder = Folder.open(str(tmp_path))
    for name, wins in won.items():
        for i in wins:
            assert folder.read(f"claims/{i}") == name.encode() * 1000
    assert not [*tmp_path.rglob(f"{TEMPORARY_PREFIX}*")]


def test_one_thread_wins_each_create(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    barrier = threading.Barrier(8)
    wins: Counter[int] = Counter()

    def claim(name: int) -> None:
        for i in range(ROUNDS):
            barrier.wait()
            if folder.create(f"claims/{i}", bytes([name])):
                wins[i] += 1

    threads = [threading.Thread(target=claim, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins == Counter(range(ROUNDS))


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_process_leaves_no_half_object(tmp_path: Path, seed: int) -> None:
    process = start(REWRITE, str(tmp_path))
    assert line_of(process) == "ready"
    time.sleep(0.05 + 0.037 * seed)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = Folder.open(str(tmp_path))
    sizes = {"new": 300_000, "same": 3_000_000, "created": 1_000_000}
    keys = folder.list()
    assert keys
    for key in keys:
        data = folder.read(key)
        assert len(data) == sizes[key.split("/")[0]]
        assert data == data[:1] * len(data)


def test_a_failed_write_keeps_the_old_object_and_no_leftover(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the disk refuse the byte that is one too many."""
    folder = Folder.open(str(tmp_path))
    script = """
import resource, sys
from specpipe.schemas.errors import StoreError
from specpipe.stages.storage.store.folder import Folder
folder = Folder.open(sys.argv[1])
folder.write("object", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for action, key in (folder.write, "object"), (folder.create, "other"):
    try:
        action(key, b"x" * 5000)
    except StoreError as error:
        print(error)
"""
    output, _ = start(script, str(tmp_path)).communicate(timeout=60)
    assert output.count("File too large") == 2
    assert folder.read("object") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["object"]


def test_a_shard_that_does_not_fit_loses_nothing_committed(tmp_path: Path) -> None:
    identity = make_identity(24, hidden=256)
    folder = Folder.open(str(tmp_path))
    pairs = make_shards(identity)[0]
    manifest = write_shard(folder, identity, 0, pairs)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), "10000"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        timeout=60,
    )
    assert "cannot write" in done.stdout
    assert "/shards/000001-" in done.stdout
    assert not folder.exists("shards/000001.manifest.json")
    states = ShardReader(folder, identity, manifest).read_all()
    assert equal_states(states, concatenated([states for _, states in pairs]))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system needs root; RLIMIT_FSIZE stands in for it above")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def append_many(writer: ShardWriter, identity: DumpIdentity) -> list[Pair]:
    """Half of what fits on the small disk."""
    pairs = [make_pair(identity, seed, 60, [(1, 60)]) for seed in range(8)]
    for pair in pairs:
        writer.append(*pair)
    return pairs


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_loses_nothing_committed(format: str, small_disk: Path) -> None:
    identity = make_identity(24, hidden=256, **FORMATS[format])
    folder = Folder.open(str(small_disk))
    scales = write_tiny_scales(folder, identity)
    committed = make_shards(identity)[0]
    manifest = write_shard(folder, identity, 0, committed)
    before = ShardReader(folder, identity, manifest).read_all()
    filler = small_disk / "somebody else's"
    filler.write_bytes(bytes(free_bytes(small_disk) - 2**17))

    def shard() -> ShardReader:
        writer = ShardWriter(ShardAttempt(folder, 1), identity, 480, 472, scales=scales)
        pairs = append_many(writer, identity)
        return ShardReader(folder, identity, writer.commit(vocab_of(pairs)))

    with pytest.raises(StoreError) as raised:
        shard()
    text = str(raised.value)
    assert f"cannot write {small_disk}/shards/000001-" in text
    assert "No space left" in text
    assert f"free some space on the disk that is mounted at {small_disk} and run the same" in text
    assert not folder.exists("shards/000001.manifest.json")
    assert not [*small_disk.rglob(f"{TEMPORARY_PREFIX}*")]
    assert equal_states(ShardReader(folder, identity, manifest).read_all(), before)

    filler.unlink()
    assert len(shard().samples()) == 8
    assert equal_states(ShardReader(folder, identity, manifest).read_all(), before)


def free_bytes(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_bsize


def test_a_disk_that_can_only_be_read(small_disk: Path) -> None:
    """Root goes by no modes, but by how a disk is mounted."""
    identity = make_identity()
    folder = Folder.open(str(small_disk))
    pairs = make_shards(identity)[0]
    manifest = write_shard(folder, identity, 0, pairs)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    with pytest.raises(StoreError) as raised:
        write_shard(folder, identity, 1, pairs)
    text = str(raised.value)
    assert f"cannot write {small_disk}/shards/000001-" in text
    assert "Read-only file system" in text
    assert f"get the right to do that on the disk that is mounted at {small_disk}" in text
    for action in (folder.check_writable, lambda: folder.remove("shards")):
        with pytest.raises(StoreError, match="Read-only file system"):
            action()
    states = ShardReader(folder, identity, manifest).read_all()
    assert equal_states(states, concatenated([states for _, states in pairs]))

    subprocess.run([*remount[:2], "remount,rw", str(small_disk)], check=True)
    write_shard(folder, identity, 1, pairs)
    assert folder.exists("shards/000001.manifest.json")


@pytest.mark.parametrize("path", ["bare.json", "new/bare.json"])
def test_a_path_without_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(Path(path), b"1")
    write_file(Path(path), b"2")
    assert (tmp_path / path).read_bytes() == b"2"
    assert [file.name for file in tmp_path.rglob("*.json")] == ["bare.json"]
