"""Ranks share out what they read, in an order that is the same for every number of them."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.counting_disk import CountingDisk
from specpipe.schemas.records.checkpoint import TrainState
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.samples.read_ahead import ReadAhead
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.samples.selection import split
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.retry import DEFAULT_POLICY
from specpipe.stages.train.data.order import evaluation_reads, planned_reads
from tests.storage.tiny import make_identity, make_pair, write_dump
from tests.train.conftest import resolved

NUM_STEPS = 8
"""About an epoch."""

Pack = tuple[SampleRef, ...]


def write(root: Path, **format: Any) -> None:
    identity = make_identity(chunk_tokens=256, hidden=512, **format)
    shards = [
        [make_pair(identity, 100 * shard + at, 60, [(50, 60)]) for at in range(24)]
        for shard in range(4)
    ]
    write_dump(str(root), identity, shards)


def read(root: Path, rank: int, num_ranks: int) -> tuple[list[Pack], int]:
    """What a rank reads in an epoch with two evaluations, and how many bytes that takes."""
    opened, disk = Dump.open(str(root)), CountingDisk()
    folder = Folder(str(root), disk, str(root), DEFAULT_POLICY)
    reader = SampleReader(Dump(folder, opened.header, opened.manifests, opened.index), None)
    training, held_out = split(reader.refs(), 0.4)
    config = TrainConfig(
        dump=str(root), out="-", batch_tokens=480, pack_tokens=60, eval_every=NUM_STEPS
    )
    beginning: dict[str, Any] = {"step": 0, "epoch": 0, "batch_in_epoch": 0, "eval_due": True}
    state = TrainState.model_construct(total_steps=NUM_STEPS, **beginning)
    share = slice(rank, None, num_ranks)
    evaluation = evaluation_reads(reader, held_out, 60, num_ranks)[share]
    plan = planned_reads(resolved(config), state, reader, training, evaluation, share)
    before = disk.num_bytes
    with ReadAhead(plan, lambda _, samples: len(samples), config.prefetch_mib) as ahead:
        packs = [tuple(read.refs) for read, _ in ahead]
    return packs, disk.num_bytes - before


@pytest.mark.parametrize(
    ("num_ranks", "format", "times"),
    [
        # The samples' own bytes.
        (8, {}, 1.0),
        # All shards for the half of the training samples; those held out are few enough.
        (2, {}, 2.35),
        # A compressed chunk is read whole.
        (8, {"compression": "zstd"}, 8.0),
    ],
)
def test_what_all_ranks_read(
    num_ranks: int, format: dict[str, Any], times: float, tmp_path: Path
) -> None:
    write(tmp_path, **format)
    alone, num_bytes = read(tmp_path, 0, 1)
    ranks = [read(tmp_path, rank, num_ranks) for rank in range(num_ranks)]
    assert Counter(alone) == Counter(pack for packs, _ in ranks for pack in packs)
    for packs, _ in ranks:
        rest = iter(alone)
        assert all(pack in rest for pack in packs)
    assert sum(read for _, read in ranks) == pytest.approx(times * num_bytes, rel=0.1)
