"""A dump killed at any moment and run again is the dump of a run that was not killed."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.records.dump import INDEX_FILE, manifest_key
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run
from specpipe.stages.storage.dump import Dump
from specpipe.stages.upkeep.verify.run import verify

PROGRAM = Path(__file__).parent / "dump_killed.py"
NUM_MORE_CHAINS = int(os.environ.get("SPECPIPE_NUM_KILLS", "0"))
"""scripts/prove adds kills at random moments."""

MakeConfig = Callable[..., DumpConfig]


def contents(url: str) -> dict[str, bytes]:
    """Every object of a finished dump, attempts renamed, and without what follows from their names.

    That is a manifest's own hash, and its crc in the index.
    """
    dump = Dump.open(url)
    assert dump.index is not None
    found: dict[str, bytes] = {}
    for shard_id, manifest in dump.manifests.items():
        text = manifest.model_dump_json(exclude={"content_sha256"}).replace(
            manifest.attempt, "ATTEMPT"
        )
        found[manifest_key(shard_id)] = text.encode()
        for entry in manifest.objects:
            found[entry.key.replace(manifest.attempt, "ATTEMPT")] = dump.folder.read(entry.key)
    for entry in dump.index.objects:
        if entry.key not in found:
            found[entry.key] = dump.folder.read(entry.key)
    objects = [
        entry.model_copy(update={"crc32c": 0}) if entry.key in manifests(dump) else entry
        for entry in dump.index.objects
    ]
    index = dump.index.model_copy(update={"objects": tuple(objects)})
    found[INDEX_FILE] = index.model_dump_json(exclude={"content_sha256"}).encode()
    return found


def manifests(dump: Dump) -> set[str]:
    return {manifest_key(shard_id) for shard_id in dump.manifests}


@pytest.mark.slow
def test_killed_and_run_again(
    make_config: MakeConfig,
    write_rows: Callable[..., Path],
    make_rows: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    config = make_config(write_rows([*make_rows(14), "{"]), max_rejected=1, layers=(1, 2, 3))
    run(config)
    expected = contents(config.out)
    chance = random.Random(0)
    # Every write of the first files, then some of the shards' and of the last files; then moments
    # of the clock, and several kills in a row.
    chains: list[list[int | float]] = [[n] for n in range(1, 40, 6)]
    chains += [[n] for n in sorted(chance.sample(range(40, 150), 4))]
    chains += [[chance.uniform(0.05, 1.0)] for _ in range(3)]
    chains += [[chance.randrange(1, 90), chance.uniform(0.3, 0.9), chance.randrange(1, 60)]]
    chains += [[chance.randrange(1, 150)] for _ in range(NUM_MORE_CHAINS)]
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "moments.json").write_text(json.dumps(chains))
    out = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, PROGRAM, tmp_path / "config.json", out, tmp_path / "moments.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= len(chains) // 2
    for i, chain in enumerate(chains):
        found = contents(str(out / str(i)))
        assert found.keys() == expected.keys(), chain
        differing = [key for key in expected if found[key] != expected[key]]
        assert not differing, (chain, differing)
        report = verify(str(out / str(i)))
        assert report.complete
        assert not report.damages
