"""Part b: the shard writer against raw sequential writing of the same bytes."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from scripts.bench.material import (
    Pair,
    ShardSize,
    identity_of,
    pairs,
    scales_of,
    state_bytes,
    write_shard,
)
from scripts.bench.table import heading, note, table, verdict
from scripts.bench.timing import over, rates, rounds, with_spread
from scripts.bench.variants import VARIANTS
from specpipe.schemas.records.dump import DumpIdentity, manifest_key
from specpipe.stages.storage.store.folder import Folder

TARGET = 0.6


@dataclass
class _Writes:
    """One shard, written by the writer and raw."""

    work: Path
    identity: DumpIdentity
    shard: Sequence[Pair]
    sizes: list[int] = field(default_factory=list)
    """Of the objects that the writer wrote."""

    def by_writer(self) -> float:
        root = self.work / "shard"
        folder = Folder.open(str(root))
        scales = scales_of(folder, self.identity, self.shard)
        began = time.perf_counter()
        manifest = write_shard(folder, self.identity, 0, self.shard, scales)
        took = time.perf_counter() - began
        record = folder.size(manifest_key(0))
        assert record is not None
        self.sizes = [entry.size for entry in manifest.objects] + [record]
        shutil.rmtree(root)
        return took

    def raw(self) -> float:
        """The same objects, one after the other, each file and its folder synced."""
        return self._raw(self.sizes)

    def raw_in_one(self) -> float:
        """As many bytes in one file that is synced once."""
        return self._raw([sum(self.sizes)])

    def _raw(self, sizes: Sequence[int]) -> float:
        root = self.work / "raw"
        root.mkdir()
        data = np.random.default_rng(0).bytes(min(max(sizes), 2**26))
        folder = os.open(root, os.O_RDONLY)
        began = time.perf_counter()
        for number, size in enumerate(sizes):
            file = os.open(root / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            while size:
                size -= os.write(file, memoryview(data)[:size])
            os.fsync(file)
            os.close(file)
            os.fsync(folder)
        took = time.perf_counter() - began
        os.close(folder)
        shutil.rmtree(root)
        return took


def bench(work: Path, size: ShardSize, repeats: int) -> None:
    heading("b. Shard writer against raw sequential writing")
    rows, plain = [], 0.0
    for name, format in VARIANTS.items():
        identity = identity_of(size, **format)
        shard = list(pairs(identity, size, 0))
        writes = _Writes(work, identity, shard)
        ours, raw, in_one = rounds(repeats, writes.by_writer, writes.raw, writes.raw_in_one)
        written = sum(writes.sizes)
        ratios = over(raw, ours)
        plain = plain or median(ratios)
        rows.append(
            (
                name,
                f"{state_bytes(shard) / 1e6:.1f}",
                f"{written / 1e6:.1f} in {len(writes.sizes)}",
                rates(state_bytes(shard), ours),
                rates(written, ours),
                rates(written, raw),
                with_spread(ratios),
                with_spread(over(in_one, ours)),
            )
        )
    note(
        f"One shard of {size.shard_tokens} tokens, three layers and final states of "
        f"{size.hidden}. Raw: the same number and sizes of files, one after the other, each file "
        "and its folder synced as the writer does it. The writer sends up to four objects at the "
        f"same time. {repeats} interleaved rounds; median (least to most)."
    )
    table(
        (
            "shard",
            "states, MB",
            "written, MB and objects",
            "writer, MB/s of states",
            "writer, MB/s written",
            "raw, MB/s",
            "writer / raw",
            "writer / one file, one fsync",
        ),
        rows,
    )
    note(
        verdict(
            f"writer / raw of zarr, final: {plain:.2f}, to be {TARGET} or more", plain >= TARGET
        )
    )
