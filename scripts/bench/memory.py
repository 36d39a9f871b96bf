"""Part e: peak memory of writer and reader against what the configuration bounds."""

from dataclasses import asdict
from pathlib import Path

from scripts.bench.child import Values, in_child
from scripts.bench.material import ShardSize, identity_of, write_shards
from scripts.bench.table import heading, note, table, verdict
from specpipe.stages.storage.store.folder import Folder

SLACK = 1.25
"""Of the bound; beyond it and the fixed part, memory would not be bounded by the setting."""
FIXED_MIB = 48
"""Threads, records, samples.parquet, buffers of Arrow and of the allocator."""


def bench(work: Path, size: ShardSize, settings_mib: tuple[int, int]) -> None:
    heading("e. Peak memory of writer and reader")
    num_mib = 3 * max(settings_mib)
    identity = identity_of(size, chunk_tokens_of(size, min(settings_mib)))
    shard_mib = size.shard_tokens * len(identity.layers) * size.hidden * 2 * 4 / 3 / 2**20
    num_shards = max(4, round(num_mib / shard_mib))
    root = work / "memory"
    write_shards(Folder.open(str(root)), identity, size, num_shards)
    rows = []
    fits = True
    for side, setting in (("writer", "write_buffer_mib"), ("reader", "prefetch_mib")):
        for mib in settings_mib:
            asked: Values = {
                "side": side,
                "mib": mib,
                "root": str(root),
                "out": str(work / "memory-out"),
                "size": asdict(size),
                "chunk_tokens": identity.chunk_tokens,
                "num_shards": num_shards,
                "total_mib": num_mib,
            }
            found = in_child("scripts.bench.memory_side", asked)
            bound = found["bound_mib"]
            fits &= found["grown_mib"] <= SLACK * bound + FIXED_MIB
            rows.append(
                (
                    side,
                    f"{setting} {mib}",
                    f"{found['moved_mib']:.0f}",
                    f"{bound:.0f}",
                    f"{found['traced_mib']:.0f}",
                    f"{found['grown_mib']:.0f}",
                )
            )
    note(
        "Each in a process of its own. The writer writes one shard to a disk that is slower than "
        "the target (each write takes as long as at 100 MB/s), so that its buffer fills; the "
        "states are the same few, made before. The reader streams shards in the trainer's order to "
        "a consumer that is slower than the disk. Bound: the setting (or one chunk of each array, "
        "or one shard, where that is more), and for the reader the samples of three batches: in "
        "use, made ready, and being made. Traced: the peak that tracemalloc saw of Python's and "
        "NumPy's memory. Grown: peak resident memory above that before (VmHWM)."
    )
    table(("", "setting", "moved, MiB", "bound, MiB", "traced, MiB", "grown, MiB"), rows)
    text = f"grown at most {SLACK} of the bound and {FIXED_MIB} MiB that no setting bounds"
    note(verdict(text, fits))


def chunk_tokens_of(size: ShardSize, smallest_mib: int) -> int:
    """Chunks of an eighth of the smallest setting, so that the setting is the bound."""
    return max(1, smallest_mib * 2**20 // 8 // (size.hidden * 2))
