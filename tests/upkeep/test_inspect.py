"""What `specpipe inspect` says is in the dump."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.dump import INDEX_FILE, manifest_key
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.upkeep.inspect import inspect


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
    (sample,) = found.samples
    assert sample.pieces == (
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
    assert len(found.samples) == 1
    for shard_id in range(1, found.num_planned_shards):
        folder.remove(manifest_key(shard_id))
    assert inspect(config.out).samples == ()


@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
@pytest.mark.parametrize("logits", ["final", "topk:8", "full"])
@pytest.mark.parametrize("states", ["bfloat16", "int8"])
def test_every_kind_of_dump(
    make_config: Callable[..., DumpConfig],
    write_rows: Callable[..., Path],
    make_rows: Callable[..., list[dict[str, Any]]],
    shard_format: str,
    logits: str,
    states: str,
) -> None:
    config = make_config(
        write_rows(make_rows(12)), format=shard_format, logits=logits, states=states
    )
    run(config)
    found = inspect(config.out, 3)
    assert len(found.samples) == 3
    names = ["layer 1", "layer 3", "layer 4", *(["final"] if logits == "final" else [])]
    assert [layer.name for layer in found.layers] == names
    errors = [layer.error for layer in found.layers if layer.name != "final"]
    if states == "int8":
        stored = [m.aux_error for m in Dump.open(config.out).manifests.values() if m.aux_error]
        for layer, error in enumerate(errors):
            of_shards = [shard[layer] for shard in stored]
            assert error is not None
            assert 0 < min(of_shards) <= error <= max(of_shards) < 0.02
    else:
        assert errors == [None] * 3


def test_more_samples_than_there_are(
    make_config: Callable[..., DumpConfig],
    write_rows: Callable[..., Path],
    make_rows: Callable[..., list[dict[str, Any]]],
) -> None:
    config = make_config(write_rows(make_rows(7)), out="memory://inspect/seven")
    run(config)
    found = inspect(config.out, 100)
    assert len({sample.sample_id for sample in found.samples}) == 7
    none = inspect(config.out, 0)
    assert none.samples == ()
    assert none.layers


def test_no_dump() -> None:
    with pytest.raises(ConfigError, match="no dump"):
        inspect("memory://inspect/nothing")


def test_attainable_mass_takes_the_most_probable_tokens() -> None:
    mass_V = np.arange(1000, dtype=np.float64)
    found = VocabStatistics(np.zeros(1000, np.int64), mass_V).attainable_mass()
    assert list(found) == [256, 512, 1000]
    assert found[256] == pytest.approx(mass_V[-256:].sum() / mass_V.sum())
    assert VocabStatistics.zeros(1000).attainable_mass() == {}
