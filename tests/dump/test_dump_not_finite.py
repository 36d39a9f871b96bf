"""States that are not finite: the sample is refused, recorded, and never tried for ever."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from specpipe.schemas.errors import InputError, IntegrityError
from specpipe.schemas.records.dump import manifest_key
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder

MakeConfig = Callable[..., DumpConfig]
WriteRows = Callable[..., Path]
MakeRows = Callable[..., list[dict[str, Any]]]


def poison(target: Path, folder: Path, tensor: str, row: int | None, value: float) -> Path:
    """A copy of the target with one row of a weight, or all of it, replaced."""
    shutil.copytree(target, folder)
    weights = load_file(folder / "model.safetensors")
    weights[tensor][slice(None) if row is None else row] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def poisoned(
    make_config: MakeConfig,
    write_rows: WriteRows,
    make_rows: MakeRows,
    target: Path,
    tmp_path: Path,
) -> DumpConfig:
    """Token 9 has no finite embedding; the samples on lines 3 and 8 hold it."""
    data = make_rows(12)
    for at, row in enumerate(data):
        row["input_ids"] = [10 if t == 9 else t for t in row["input_ids"]]
        if at in (2, 7):
            row["input_ids"][2] = 9
        row["labels"] = [
            -100 if old == -100 else new
            for old, new in zip(row["labels"], row["input_ids"], strict=True)
        ]
    name = "model.embed_tokens.weight"
    broken = poison(target, tmp_path / "broken", name, 9, float("nan"))
    return make_config(write_rows(data), target=str(broken))


def test_too_many_stop_the_run(poisoned: DumpConfig) -> None:
    with pytest.raises(InputError, match=r"data\.jsonl:\d+: .* not finite") as caught:
        run(poisoned)
    assert caught.value.exit_code == 3


def test_those_samples_are_left_out_and_recorded(poisoned: DumpConfig) -> None:
    config = poisoned.model_copy(update={"max_rejected": 2})
    result = run(config)
    assert (result.num_samples, result.num_rejected) == (10, 2)
    folder = Folder.open(config.out)
    rejected = [json.loads(line) for line in folder.read("rejected.jsonl").splitlines()]
    assert sorted(r["source"]["line"] for r in rejected) == [3, 8]
    assert all(r["kind"] == "refused" and "not finite" in r["reason"] for r in rejected)
    dump = Dump.open(config.out)
    for shard_id in dump.manifests:
        reader = dump.shard(shard_id)
        reader.read_all()
        assert {s.source.line for s in reader.samples()}.isdisjoint({3, 8})
    assert dump.vocab().mass_V.sum() == pytest.approx(result.num_rows, rel=1e-6)
    assert run(config).did_nothing


def test_refusals_of_committed_shards_still_count(poisoned: DumpConfig) -> None:
    run(poisoned.model_copy(update={"max_rejected": 2}))
    folder = Folder.open(poisoned.out)
    last = max(Dump.open(poisoned.out).manifests)
    for key in ("index.json", "vocab.parquet", "rejected.jsonl", manifest_key(last)):
        folder.remove(key)
    result = run(poisoned.model_copy(update={"max_rejected": 2}))
    assert result.num_rejected == 2


@pytest.mark.parametrize("tensor", ["model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_head_is_refused_before_any_sample(
    make_config: MakeConfig,
    write_rows: WriteRows,
    make_rows: MakeRows,
    target: Path,
    tmp_path: Path,
    tensor: str,
    value: float,
) -> None:
    """No logits come of it: the target is at fault, not the samples, however many may be lost."""
    broken = poison(target, tmp_path / "broken", tensor, None, value)
    config = make_config(write_rows(make_rows(4)), target=str(broken), max_rejected=4)
    with pytest.raises(IntegrityError, match="holds NaN or infinity"):
        run(config)
    folder = Folder.open(config.out)
    assert not folder.exists("index.json")
    assert not [key for key in folder.sizes() if key.startswith("shards/")]
