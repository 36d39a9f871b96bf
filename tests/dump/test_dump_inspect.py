"""What `specpipe inspect` says is in the dump."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpipe.schemas.config import DumpConfig
from specpipe.schemas.dump import INDEX_FILE, manifest_key
from specpipe.schemas.errors import ConfigError
from specpipe.stages.dump.inspect import attainable_mass, inspect
from specpipe.stages.dump.run import run
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.vocab import VocabStatistics


def test_a_finished_dump(
    make_config: Callable[..., DumpConfig], write_rows: Callable[..., Path]
) -> None:
    turns = [{"role": "user", "content": "a" * 20}, {"role": "assistant", "content": "b" * 9}]
    config = make_config(write_rows([{"messages": turns}]), out="memory://inspect/one")
    result = run(config)
    found = inspect(config.out)
    assert found.complete
    assert found.fingerprint == result.fingerprint
    assert (found.num_tokens, found.num_bytes) == (result.num_tokens, result.num_bytes)
    assert [layer.name for layer in found.layers] == ["layer 1", "layer 3", "layer 4", "final"]
    assert all(0 < layer.rms <= layer.largest for layer in found.layers)
    assert found.sample is not None
    assert found.sample.pieces == (
        ("<|user|>" + "a" * 20 + "<|end|><|assistant|>", False),
        ("b" * 9 + "<|end|>", True),
    )
    assert list(found.attainable) == [256, 260]
    assert found.attainable[260] == pytest.approx(1)


def test_an_unfinished_dump(
    make_config: Callable[..., DumpConfig],
    write_rows: Callable[..., Path],
    make_rows: Callable[..., list[dict[str, Any]]],
) -> None:
    config = make_config(write_rows(make_rows(12)), out="memory://inspect/two")
    run(config)
    folder = Folder.open(config.out)
    folder.remove(INDEX_FILE)
    folder.remove(manifest_key(0))
    found = inspect(config.out)
    assert not found.complete
    assert found.num_shards == found.num_planned_shards - 1
    assert found.sample is not None
    for shard_id in range(1, found.num_planned_shards):
        folder.remove(manifest_key(shard_id))
    assert inspect(config.out).sample is None


def test_no_dump() -> None:
    with pytest.raises(ConfigError, match="no dump"):
        inspect("memory://inspect/nothing")


def test_attainable_mass_takes_the_most_probable_tokens() -> None:
    mass_V = np.arange(1000, dtype=np.float64)
    found = attainable_mass(VocabStatistics(np.zeros(1000, np.int64), mass_V))
    assert list(found) == [256, 512, 1000]
    assert found[256] == pytest.approx(mass_V[-256:].sum() / mass_V.sum())
    assert attainable_mass(VocabStatistics.zeros(1000)) == {}
