"""Part c: readers, which check every crc, against raw reading of the same files."""

import mmap
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from scripts.bench.counting_disk import CountingDisk
from scripts.bench.material import ShardSize, identity_of, write_shards
from scripts.bench.table import heading, note, table, verdict
from scripts.bench.timing import over, rates, rounds, with_spread
from scripts.bench.variants import VARIANTS
from specpipe.schemas.records.dump import DumpIdentity
from specpipe.stages.samples.batch import DrafterSample, make_batch
from specpipe.stages.samples.read_ahead import ReadAhead, read_samples
from specpipe.stages.samples.reader import SHARDS_TOGETHER, SampleReader, SampleRef
from specpipe.stages.samples.shard_window import Read
from specpipe.stages.storage.chunks.arrays import array_names, shard_arrays
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.buffer_pool import BufferPool
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.retry import DEFAULT_POLICY
from specpipe.stages.train.data.packing import epoch_batches

SPEED = 0.8
AMPLIFICATION = 1.2
_THREADS = 4
"""As many as read the chunks of a shard."""
_BATCH_TOKENS = 8192


_Memory = npt.NDArray[np.uint8]


@dataclass
class _Reads:
    """One dump, read in several ways."""

    root: Path
    dump: Dump
    is_cold: bool = False
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of each way of reading, by the name of its method."""
    _memory: BufferPool = field(default_factory=lambda: BufferPool(0))

    def by_shard(self) -> float:
        """ShardReader.read_all of each shard: all states, every crc checked."""

        def read() -> None:
            for shard_id in self.dump.manifests:
                self.dump.shard(shard_id).read_all()

        return self._timed("by_shard", read)

    def by_stream(self) -> float:
        """One epoch in the trainer's order, packed into batches, with memory for as many shards
        as that order needs together."""
        reader = SampleReader(self.dump, None)
        batches = epoch_batches(reader.refs(), 0, 0, _BATCH_TOKENS, None)
        plan = [Read(reader, batch, False) for batch in batches]
        sizes = sorted(map(reader.whole_bytes, self.dump.manifests))
        prefetch_mib = -(-sum(sizes[-SHARDS_TOGETHER - 1 :]) // 2**20)

        def read() -> None:
            num_tokens, memory = 0, BufferPool(0)
            with ReadAhead(
                plan, lambda _, some: make_batch(some, 3, memory), prefetch_mib
            ) as ahead:
                for _, batch in ahead:
                    num_tokens += batch.num_tokens
            assert num_tokens == sum(m.num_tokens for m in self.dump.manifests.values())

        return self._timed("by_stream", read)

    def raw(self) -> float:
        """Each file into new memory, one after the other; a shard's stay until the next."""
        return self._raw("raw", _new_memory)

    def raw_again(self) -> float:
        """The same into memory that was read into before, so that none of it is new."""
        return self._raw("raw_again", self.memory_again)

    def raw_parallel(self) -> float:
        """As `raw` on as many threads as the reader has."""

        def read() -> None:
            with ThreadPoolExecutor(_THREADS) as pool:
                for paths in self._files():
                    kept = list(pool.map(lambda path: _read(path, _new_memory), paths))
                    del kept

        return self._timed("raw_parallel", read)

    def memory_again(self, size: int) -> _Memory:
        return self._memory.array((size,), np.dtype(np.uint8))

    def _raw(self, name: str, memory: Callable[[int], _Memory]) -> float:
        def read() -> None:
            for paths in self._files():
                kept = [_read(path, memory) for path in paths]
                del kept

        return self._timed(name, read)

    @property
    def num_bytes(self) -> int:
        return sum(e.size for m in self.dump.manifests.values() for e in m.objects)

    def drop_cache(self) -> None:
        for path in self.root.rglob("*"):
            if path.is_file():
                file = os.open(path, os.O_RDONLY)
                os.fsync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)

    def _timed(self, name: str, read: Callable[[], None]) -> float:
        if self.is_cold:
            self.drop_cache()
        began, cpu = time.perf_counter(), time.process_time()
        read()
        self.cpu_seconds.setdefault(name, []).append(time.process_time() - cpu)
        return time.perf_counter() - began

    def _files(self) -> list[list[Path]]:
        manifests = self.dump.manifests.values()
        return [[self.root / entry.key for entry in manifest.objects] for manifest in manifests]


def bench(work: Path, size: ShardSize, num_shards: int, repeats: int, num_random: int) -> None:
    heading("c. Readers with crc checks against raw reading")
    rows: list[Sequence[str]] = []
    random_rows = []
    met: dict[str, float] = {}
    for name, format in VARIANTS.items():
        root = work / "dump"
        identity = identity_of(size, **format)
        dump = write_shards(Folder.open(str(root)), identity, size, num_shards)
        reads = _Reads(root, dump)
        ways = {"read_all": reads.by_shard}
        # Training reads the mode `final`.
        if identity.logits == "final":
            ways["stream of the trainer"] = reads.by_stream
        rows += _sequential(name, reads, ways, "warm", repeats, met)
        if name == next(iter(VARIANTS)):
            reads.is_cold = True
            if _reaches_disk(reads):
                rows += _sequential(name, reads, ways, "cold", repeats, met)
            else:
                rows.append((name, "read_all", "cold: cannot be had here", *["-"] * 7))
        if identity.logits == "final":
            random_rows.append(_random(root, dump, name, num_random, met))
        shutil.rmtree(root)
    note(
        f"{num_shards} shards of {size.shard_tokens} tokens, three layers and final states of "
        f"{size.hidden}. Raw: the same files, whole, into new memory, one after the other. Beside "
        "it: raw into memory that has been used before, which from the page cache is a copy by one "
        f"core and nothing else; and raw on {_THREADS} threads, on as many as read a shard's "
        "chunks. The trainer's stream copies each sample once more, into its batch. Warm: all of "
        "it in the page cache, for both. Cold: put out of it by "
        "posix_fadvise before each. CPU: seconds of all threads together, which depend less on how "
        f"busy the cores are. {repeats} interleaved rounds; median (least to most)."
    )
    table(
        (
            "shards",
            "reader",
            "page cache",
            "MB",
            "reader, MB/s",
            "raw, MB/s",
            "reader / raw",
            "reader / raw into used memory",
            f"reader / raw on {_THREADS} threads",
            "reader / raw, by CPU",
        ),
        rows,
    )
    first = next(iter(VARIANTS))
    for way in ("read_all", "stream of the trainer"):
        ratio = met[f"{first}, {way}, warm"]
        note(verdict(f"{way} / raw, {first}: {ratio:.2f}, to be {SPEED} or more", ratio >= SPEED))
    note(
        f"Random samples: {num_random} of the dump's, as the trainer reads a few samples of many "
        "(`is_sparse`). Bytes read are counted where the store is asked for them, samples.parquet "
        "and the arrays of one number a row, which are read once a shard, included. Used are the "
        "samples' states, ids and masks. Only raw chunks can be read in part."
    )
    table(
        ("shards", "samples", "MB used", "MB read", "read / used", "requests / sample"), random_rows
    )
    ratio = met[f"{first}, random"]
    text = f"read / used, {first}: {ratio:.2f}, to be {AMPLIFICATION} or less"
    note(verdict(text, ratio <= AMPLIFICATION))


def _sequential(
    name: str,
    reads: _Reads,
    ways: dict[str, Callable[[], float]],
    cache: str,
    repeats: int,
    met: dict[str, float],
) -> list[Sequence[str]]:
    reads.cpu_seconds.clear()
    *all_ours, raw, again, parallel = rounds(
        repeats, *ways.values(), reads.raw, reads.raw_again, reads.raw_parallel
    )
    rows: list[Sequence[str]] = []
    # The first round is not counted.
    cpu = {read: seconds[1:] for read, seconds in reads.cpu_seconds.items()}
    for (way, read), ours in zip(ways.items(), all_ours, strict=True):
        met[f"{name}, {way}, {cache}"] = median(over(raw, ours))
        rows.append(
            (
                name,
                way,
                cache,
                f"{reads.num_bytes / 1e6:.1f}",
                rates(reads.num_bytes, ours),
                rates(reads.num_bytes, raw),
                with_spread(over(raw, ours)),
                with_spread(over(again, ours)),
                with_spread(over(parallel, ours)),
                with_spread(over(cpu["raw"], cpu[read.__name__])),
            )
        )
    return rows


def _random(root: Path, dump: Dump, name: str, number: int, met: dict[str, float]) -> Sequence[str]:
    disk = CountingDisk()
    counted = Dump(
        Folder(str(root), disk, str(root), DEFAULT_POLICY), dump.header, dump.manifests, None
    )
    refs = SampleReader(dump, None).refs()
    chosen = np.random.default_rng(1).choice(len(refs), min(number, len(refs)), replace=False)
    wanted: list[SampleRef] = [refs[at] for at in chosen]
    reader = SampleReader(counted, None)
    assert reader.is_sparse(wanted), "so many samples that whole shards are read"
    used = sum(_used_bytes(dump.identity, s) for s in read_samples(reader, wanted))
    met[f"{name}, random"] = disk.num_bytes / used
    return (
        name,
        f"{len(wanted)} of {len(refs)}",
        f"{used / 1e6:.2f}",
        f"{disk.num_bytes / 1e6:.2f}",
        f"{disk.num_bytes / used:.3f}",
        f"{disk.num_requests / len(wanted):.1f}",
    )


def _used_bytes(identity: DumpIdentity, sample: DrafterSample) -> int:
    """A sample's states as they are stored, its ids (int32) and its mask (uint8)."""
    num_tokens, num_rows = len(sample.input_ids), len(sample.states.logz_S)
    arrays = shard_arrays(identity, num_tokens, num_rows, dict.fromkeys(array_names(identity), 1))
    return sum(a.num_rows * a.row_bytes for a in arrays.values()) + 5 * num_tokens


def _read(path: Path, memory: Callable[[int], _Memory]) -> _Memory:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        values = memory(size)
        view = values.data
        while len(view):
            view = view[file.readinto(view) or size :]
    return values


def _new_memory(size: int) -> _Memory:
    """Straight from the kernel: what numpy.empty gives may have been used and freed before."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)


def _reaches_disk(reads: _Reads) -> bool:
    """Whether a dropped cache is really empty: by what the kernel says it fetched."""
    before = _fetched()
    reads.raw()
    return _fetched() - before > 0.9 * reads.num_bytes


def _fetched() -> int:
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("read_bytes"))
