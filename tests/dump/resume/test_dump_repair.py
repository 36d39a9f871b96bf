"""A damaged dump is mended by removing what is damaged and running the dump again."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.errors import IntegrityError, ValidationError
from specpipe.schemas.records.dump import INDEX_FILE, manifest_key, plan_key
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump import worker as worker_module
from specpipe.stages.dump.run import run
from specpipe.stages.dump.shard import write_shard
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.upkeep.verify.run import verify
from tests.dump.resume.test_dump_kill import contents

MakeConfig = Callable[..., DumpConfig]
WriteRows = Callable[..., Path]
MakeRows = Callable[..., list[dict[str, Any]]]

KEYS = {
    "dump.json": "dump.json",
    "index": "index.json",
    "vocab": "vocab.parquet",
    "rejected": "rejected.jsonl",
    "plan": "plan/000001.parquet",
    "head": "target/head.safetensors",
    "head.json": "target/head.json",
    "config": "target/config.json",
    "tokenizer": "target/tokenizer.json",
    "manifest": manifest_key(1),
    "samples": "SHARD/samples.parquet",
    "shard's vocab": "SHARD/vocab.parquet",
    "chunk": "SHARD/states.zarr/aux_1/c/1/0",
    "zarr.json": "SHARD/states.zarr/final/zarr.json",
}


@pytest.fixture
def config(make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows) -> DumpConfig:
    return make_config(
        write_rows([*make_rows(12), "{"]), max_rejected=1, layers=(1, 2, 3), shard_tokens=100
    )


def key_of(config: DumpConfig, kind: str) -> str:
    return KEYS[kind].replace("SHARD", Dump.open(config.out).manifests[1].folder)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KEYS)
def test_removing_what_verify_names_and_running_again(config: DumpConfig, kind: str) -> None:
    run(config)
    sound = contents(config.out)
    path = Path(config.out) / key_of(config, kind)
    flip(path)
    damages = verify(config.out).damages
    assert path.relative_to(config.out).as_posix() in {damage.key for damage in damages}
    for damage in damages:
        Folder.open(config.out).remove(damage.key)
    assert not run(config).did_nothing
    report = verify(config.out)
    assert (report.damages, report.complete) == ((), True)
    assert contents(config.out) == sound
    assert run(config).did_nothing


def test_a_truncated_chunk_needs_no_removing(config: DumpConfig) -> None:
    run(config)
    before = Dump.open(config.out)
    chunk = Path(config.out) / key_of(config, "chunk")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    run(config)
    after = Dump.open(config.out)
    assert not verify(config.out).damages
    assert after.manifests[0] == before.manifests[0]
    assert after.manifests[1].attempt != before.manifests[1].attempt


def test_a_damaged_manifest_is_never_taken_for_a_missing_one(config: DumpConfig) -> None:
    run(config)
    flip(Path(config.out) / manifest_key(1))
    with pytest.raises(IntegrityError, match=r"000001\.manifest\.json.*remove those objects"):
        run(config)


@pytest.mark.parametrize("kind", ["head", "head.json", "config", "tokenizer", "vocab", "rejected"])
def test_finishing_seals_nothing_that_is_damaged(config: DumpConfig, kind: str) -> None:
    """Stopped before the index, with no shard left to do."""
    run(config)
    sound = contents(config.out)
    (Path(config.out) / INDEX_FILE).unlink()
    flip(Path(config.out) / KEYS[kind])
    run(config)
    assert not verify(config.out).damages
    assert contents(config.out) == sound


def test_a_plan_with_another_token_is_refused(config: DumpConfig, tmp_path: Path) -> None:
    from specpipe.stages.storage.shard.samples import plan_from_parquet, plan_to_parquet

    run(config)
    folder = Folder.open(config.out)
    folder.remove(INDEX_FILE)
    samples = plan_from_parquet(folder.read(plan_key(0)), "plan")
    samples[0].input_ids[0] ^= 1
    folder.write(plan_key(0), plan_to_parquet(samples))
    with pytest.raises(IntegrityError, match=r"000000\.parquet is damaged.*remove it"):
        run(config)
    folder.remove(plan_key(0))
    run(config)
    assert not verify(config.out).damages


def test_a_run_that_only_finishes_proves_itself_too(
    config: DumpConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)
    (Path(config.out) / INDEX_FILE).unlink()
    capture = HfBackend.capture_batch

    def another_state(self: HfBackend, batch: Any) -> Any:
        return [replace(states, final_TH=-states.final_TH) for states in capture(self, batch)]

    monkeypatch.setattr(HfBackend, "capture_batch", another_state)
    with pytest.raises(ValidationError):
        run(config, check_samples=0)
    assert not Folder.open(config.out).exists(INDEX_FILE)


def test_what_another_worker_committed_meanwhile_is_not_done_again(
    config: DumpConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = config.model_copy(update={"out": str(tmp_path / "other")})
    run(other)
    written: list[int] = []

    def and_then_the_other_commits_all(*rest: Any, **named: Any) -> Any:
        manifest = write_shard(*rest, **named)
        written.append(manifest.shard_id)
        for key in Folder.open(other.out).list("shards"):
            if not key.startswith(f"shards/{manifest.shard_id:06d}"):
                path = Path(config.out) / key
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(other.out) / key, path)
        return manifest

    monkeypatch.setattr(worker_module, "write_shard", and_then_the_other_commits_all)
    reports: list[tuple[int, int]] = []
    result = run(config, progress=lambda done, all_tokens: reports.append((done, all_tokens)))
    assert len(written) == 1
    assert reports[-1] == (result.num_tokens, result.num_tokens)
    assert contents(config.out) == contents(other.out)


@pytest.mark.parametrize("first", [0, 2])
def test_the_first_shard_does_not_matter(
    config: DumpConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Workers begin at random shards, so that they meet late."""
    order: list[int] = []

    def noted(prepared: Any, shard_id: int, *rest: Any, **named: Any) -> Any:
        order.append(shard_id)
        return write_shard(prepared, shard_id, *rest, **named)

    other = config.model_copy(update={"out": str(tmp_path / "other")})
    run(other)
    monkeypatch.setattr(worker_module, "write_shard", noted)
    monkeypatch.setattr("random.randrange", lambda num_shards: first)
    run(config)
    in_order = sorted(order)
    assert len(order) > 2
    assert order == in_order[first:] + in_order[:first]
    assert contents(config.out) == contents(other.out)


def test_truncated_and_left_out_are_counted(
    make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows
) -> None:
    data = make_rows(6)
    late = {**data[0], "labels": [-100] * (len(data[0]["labels"]) - 1) + data[0]["labels"][-1:]}
    config = make_config(write_rows([*data, late, "{"]), max_rejected=1, context_length=9)
    counts = [
        (r.num_samples, r.num_truncated, r.num_left_out, r.num_rejected, r.did_nothing)
        for r in (run(config), run(config))
    ]
    assert counts == [(6, 6, 1, 1, False), (6, 6, 1, 1, True)]
