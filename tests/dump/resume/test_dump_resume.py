"""A dump continues where it stopped, for the same input and target only."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.errors import IdentityError, IntegrityError, UnfinishedError
from specpipe.schemas.records.dump import DUMP_FILE, INDEX_FILE, manifest_key, plan_key
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run
from specpipe.stages.dump_plan.prepared import prepare
from specpipe.stages.dump_plan.stamp import STAMP_FILE, make_stamp
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder

MakeConfig = Callable[..., DumpConfig]
WriteRows = Callable[..., Path]
MakeRows = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def config(make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows) -> DumpConfig:
    return make_config(write_rows(make_rows(15)))


def unfinish(config: DumpConfig, *missing: str) -> None:
    """Take objects away again, as if the run had not come so far."""
    folder = Folder.open(config.out)
    for key in (INDEX_FILE, "vocab.parquet", "rejected.jsonl", *missing):
        folder.remove(key)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"layers": (1, 2, 4)}, r"layers \(\[1, 2, 3\] there, \[1, 2, 4\] now\)"),
        ({"context_length": 30}, "context_length"),
        ({"shard_tokens": 100}, r"shard_tokens \(200 there, 100 now\)"),
        ({"chunk_tokens": 32}, "chunk_tokens"),
        ({"dtype": "bfloat16"}, "compute_dtype"),
        ({"text_temperature": 1.0}, "text"),
    ],
)
def test_other_settings_are_refused(
    config: DumpConfig, changes: dict[str, Any], field: str, finished: bool
) -> None:
    run(config.model_copy(update={"layers": (1, 2, 3)}))
    if not finished:
        unfinish(config, manifest_key(1))
    before = Folder.open(config.out).list()
    with pytest.raises(IdentityError, match=field) as caught:
        run(config.model_copy(update={"layers": (1, 2, 3)} | changes))
    assert caught.value.exit_code == 2
    assert Folder.open(config.out).list() == before


def test_other_data_is_refused(
    config: DumpConfig, write_rows: WriteRows, make_rows: MakeRows
) -> None:
    run(config)
    unfinish(config, manifest_key(0))
    for lines in (make_rows(14), [*make_rows(14), make_rows(1)[0]], make_rows(15)[::-1]):
        write_rows(lines)
        with pytest.raises(IdentityError, match="input_sha256"):
            run(config)
    write_rows(make_rows(15))
    assert run(config).num_samples == 15


def test_another_target_is_refused(config: DumpConfig, make_target: Callable[..., Path]) -> None:
    run(config)
    other = config.model_copy(update={"target": str(make_target(seed=1))})
    with pytest.raises(IdentityError, match=r"target\.weights_sha256"):
        run(other)


def test_target_and_data_may_move(config: DumpConfig, tmp_path: Path) -> None:
    first = run(config)
    unfinish(config, manifest_key(0))
    data = tmp_path / "elsewhere.jsonl"
    shutil.copy(config.data[0], data)
    moved = {"target": shutil.copytree(config.target, tmp_path / "moved"), "data": (str(data),)}
    again = run(config.model_copy(update=moved | {"target": str(moved["target"])}))
    assert (again.fingerprint, again.num_tokens) == (first.fingerprint, first.num_tokens)
    assert Dump.open(config.out).identity.target.name == config.target


def test_a_kill_between_dump_json_and_the_plan(config: DumpConfig) -> None:
    run(config)
    folder = Folder.open(config.out)
    whole = {key: folder.read(key) for key in folder.list() if not key.startswith("shards/")}
    for key in folder.list():
        if key != DUMP_FILE:
            folder.remove(key)
    with pytest.raises(UnfinishedError):
        Dump.open(config.out)
    run(config)
    # Manifests name their attempts, so the index differs in their crc.
    for key in set(whole) - {INDEX_FILE, "stamp.json"}:
        assert folder.read(key) == whole[key]


def test_a_kill_before_dump_json(config: DumpConfig) -> None:
    """What stands there then is the probe of the store."""
    Folder.open(config.out).write(".tmp-writable-0", b"first")
    assert run(config).complete


@pytest.mark.parametrize(
    "key",
    [
        "target/config.json",
        "plan/1.txt",
        "shards/a/b",
        INDEX_FILE,
        "provenance.json",
        # Of a run, and of a search.
        "config.json",
        "plan.json",
    ],
)
def test_files_of_something_else_are_left_alone(config: DumpConfig, key: str) -> None:
    folder = Folder.open(config.out)
    folder.write(key, b"{}")
    with pytest.raises(IdentityError, match=rf"already has {key.partition('/')[0]}, which no dump"):
        run(config)
    assert folder.list() == [key]
    assert folder.read(key) == b"{}"


def test_what_another_worker_writes_meanwhile_is_ours(
    config: DumpConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins, and writes the plan, between two looks of this one."""
    look = Folder.list

    def and_the_other_begins(folder: Folder, prefix: str = "") -> list[str]:
        monkeypatch.setattr(Folder, "list", look)
        prepare(config, folder, make_stamp(config))
        folder.remove(STAMP_FILE)
        return look(folder, "plan")

    monkeypatch.setattr(Folder, "list", and_the_other_begins)
    assert run(config).complete


def test_what_changes_no_sample_leaves_the_stamp(config: DumpConfig) -> None:
    """So that the input is not read and tokenised again."""
    free = {"time_limit": 60.0, "batch_tokens": 64, "workers": 2, "staging_mib": 8}
    stamp = make_stamp(config)
    for name, value in free.items():
        assert make_stamp(config.model_copy(update={name: value})) == stamp, name
    assert make_stamp(config.model_copy(update={"context_length": 30})) != stamp


def test_only_what_is_missing_is_done_again(config: DumpConfig) -> None:
    run(config)
    folder = Folder.open(config.out)
    kept, lost = manifest_key(0), manifest_key(1)
    before = {key: folder.read(key) for key in (kept, lost)}
    unfinish(config, lost)
    run(config)
    assert folder.read(kept) == before[kept]
    assert folder.read(lost) != before[lost]


def test_a_damaged_plan_is_refused(config: DumpConfig) -> None:
    run(config)
    unfinish(config, manifest_key(0))
    folder = Folder.open(config.out)
    folder.write(plan_key(1), folder.read(plan_key(1))[:-9])
    with pytest.raises(IntegrityError, match=plan_key(1)):
        run(config)


def test_a_foreign_manifest_is_refused(
    config: DumpConfig, make_config: MakeConfig, write_rows: WriteRows, make_rows: MakeRows
) -> None:
    run(config)
    other = make_config(write_rows(make_rows(9, seed=3), "other.jsonl"), out="memory://foreign")
    run(other)
    unfinish(config, manifest_key(0))
    folder = Folder.open(config.out)
    folder.write(manifest_key(0), Folder.open(other.out).read(manifest_key(0)))
    with pytest.raises(IntegrityError, match="another dump"):
        run(config)
