"""Faults of stores, disks and clocks, and several workers: the dump comes out as if undisturbed."""

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.errors import StoreError
from specpipe.schemas.records.dump import ShardManifest
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump import worker as worker_module
from specpipe.stages.dump.run import DumpResult, run
from specpipe.stages.storage.shard.writer import ShardWriter
from specpipe.stages.storage.store import retry
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.retry import RetryPolicy
from specpipe.stages.upkeep.verify.run import verify
from tests.dump.conftest import rows, small_config, write_lines
from tests.dump.resume.test_dump_kill import contents
from tests.s3 import Fault, Request, S3Server

NUM_SHARDS = 5
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def alone(target: Path, tmp_path_factory: pytest.TempPathFactory) -> DumpConfig:
    """A finished dump that nothing disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    data = write_lines(folder / "data.jsonl", rows(NUM_SHARDS))
    config = small_config(target, data, folder / "dump", shard_tokens=10)
    assert run(config).num_shards == NUM_SHARDS
    return config


def elsewhere(config: DumpConfig, out: Path | str, **changes: Any) -> DumpConfig:
    return config.model_copy(update={"out": str(out), **changes})


def check_same(config: DumpConfig, alone: DumpConfig) -> None:
    """Complete, sound, byte for byte the other: nothing is lost, nothing twice."""
    assert contents(config.out) == contents(alone.out)
    report = verify(config.out)
    assert (report.complete, report.damages) == (True, ())
    assert run(config).did_nothing


def num_committed(config: DumpConfig) -> int:
    keys = Folder.open(config.out).list("shards")
    return sum(key.endswith(".manifest.json") for key in keys)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tries at once instead of two minutes of them."""
    policy = RetryPolicy(patience=0.0, least_tries=5, first_wait=0.001)
    monkeypatch.setattr(retry, "DEFAULT_POLICY", policy)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_store_that_fails_a_tenth_of_its_requests(
    alone: DumpConfig, s3_server: S3Server, s3_root: str
) -> None:
    chance = random.Random(0)
    kinds: tuple[Fault, ...] = ("500", "503", "cut", "lost")
    num_failed = 0

    def fault(request: Request) -> Fault | None:
        nonlocal num_failed
        if chance.random() >= 0.1:
            return None
        num_failed += 1
        return chance.choice(kinds)

    s3_server.fault = fault
    config = elsewhere(alone, s3_root)
    assert run(config).complete
    assert num_failed > len(s3_server.requests) // 20
    s3_server.clear()
    check_same(config, alone)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_store_that_dies_for_good_and_comes_back(
    alone: DumpConfig, s3_server: S3Server, s3_root: str
) -> None:
    def fault(request: Request) -> Fault | None:
        committed = [r for r in s3_server.requests if r.key.endswith("manifest.json")]
        return "503" if sum(r.method == "PUT" for r in committed) > NUM_SHARDS // 2 else None

    s3_server.fault = fault
    config = elsewhere(alone, s3_root)
    with pytest.raises(StoreError, match=r"s3://.*tried 5 times.*run the same command") as caught:
        run(config)
    assert caught.value.exit_code == 6
    s3_server.clear()
    assert 0 < num_committed(config) < NUM_SHARDS
    run(config)
    check_same(config, alone)


class SmallDisk:
    """A file system of its own, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, options: str) -> None:
        arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        subprocess.run(arguments, check=True, capture_output=True)

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def small_disk(alone: DumpConfig, tmp_path: Path) -> Iterator[SmallDisk]:
    """Room for half of the shards, beside all that comes before them."""
    disk = SmallDisk(tmp_path / "disk")
    disk.path.mkdir()
    try:
        disk.mount(f"size={_half_way(Path(alone.out))}")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk of its own needs the right to mount: {error}")
    yield disk
    disk.unmount()


def _half_way(dump: Path) -> int:
    files = [path for path in dump.rglob("*") if path.is_file()]
    pages = {path: -(-path.stat().st_size // PAGE_BYTES) for path in files}
    in_shards = sum(pages[path] for path in files if "shards" in path.parts)
    return PAGE_BYTES * (sum(pages.values()) - in_shards // 2)


def test_a_full_disk(alone: DumpConfig, small_disk: SmallDisk) -> None:
    config = elsewhere(alone, small_disk.path / "dump")
    with pytest.raises(StoreError, match=r"free some space .*/disk and run the same") as caught:
        run(config)
    assert caught.value.exit_code == 6
    assert 0 < num_committed(config) < NUM_SHARDS
    small_disk.remount("size=64m")
    run(config)
    check_same(config, alone)


def test_a_disk_that_is_read_only_is_refused_before_the_target_is_loaded(
    alone: DumpConfig, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: Any) -> None:
        raise AssertionError("the target is loaded")

    monkeypatch.setattr(worker_module, "open_backend", loaded)
    small_disk.remount("ro")
    with pytest.raises(StoreError, match="Read-only file system") as caught:
        run(elsewhere(alone, small_disk.path / "dump"))
    assert caught.value.exit_code == 6


def test_two_workers_on_every_shard(
    alone: DumpConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stand before the commit of the same shard at the same time."""
    config = elsewhere(alone, tmp_path / "dump")
    both = threading.Barrier(2)
    commit = ShardWriter.commit
    manifests: list[ShardManifest] = []

    def commit_together(writer: ShardWriter, *rest: Any) -> ShardManifest:
        both.wait(60)
        manifests.append(commit(writer, *rest))
        both.wait(60)
        return manifests[-1]

    monkeypatch.setattr(ShardWriter, "commit", commit_together)
    monkeypatch.setattr("random.randrange", lambda num_shards: 0)
    results: list[DumpResult] = []
    workers = [threading.Thread(target=lambda: results.append(run(config))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [result.complete for result in results] == [True, True]
    # Whoever comes second gets the manifest of the one who came first.
    assert len(manifests) == 2 * NUM_SHARDS
    assert len({manifest.attempt for manifest in manifests}) == NUM_SHARDS
    attempts = {key.split("/")[1] for key in Folder.open(config.out).list("shards") if "-" in key}
    assert len(attempts) == 2 * NUM_SHARDS
    check_same(config, alone)


def test_another_number_of_workers_than_before(alone: DumpConfig, tmp_path: Path) -> None:
    """One of three, then both of two, of which the first finds nothing more to do at the end."""
    here = elsewhere(alone, tmp_path / "dump")
    shares = [(1, 3), (0, 2), (1, 2)]
    results = [run(elsewhere(here, here.out, worker_index=i, worker_count=n)) for i, n in shares]
    assert [result.complete for result in results] == [False, False, True]
    assert [result.num_shards for result in results] == [2, 4, NUM_SHARDS]
    check_same(here, alone)


def test_the_clock_does_not_matter(
    alone: DumpConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs backwards, and between two runs every file seems to be of another century."""
    now = time.time()

    def earlier() -> float:
        nonlocal now
        now -= 3600
        return now

    monkeypatch.setattr(time, "time", earlier)
    config = elsewhere(alone, tmp_path / "dump")
    run(elsewhere(config, config.out, worker_index=0, worker_count=2))
    seconds = 0.0
    for path in sorted(Path(config.out).rglob("*")):
        seconds = 4e9 if seconds == 0.0 else 0.0
        os.utime(path, (seconds, seconds))
    os.utime(alone.data[0], (4e9, 4e9))
    assert num_committed(config) == 3
    run(config)
    check_same(config, alone)
