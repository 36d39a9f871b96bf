"""`specpipe gc`: what nobody names goes, what somebody names stays."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import ConfigError, IntegrityError, UnfinishedError
from specpipe.schemas.records.dump import INDEX_FILE, manifest_key
from specpipe.stages.dump.run import run
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.upkeep.gc import gc
from specpipe.stages.upkeep.verify.run import verify
from tests.dump.conftest import rows, save_target, small_config, write_lines

LOST = "shards/000001-00000000000000aa"
"""The folder of an attempt that no manifest names."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gc")
    save_target(folder / "target")
    write_lines(folder / "data.jsonl", rows(12))
    return folder


@pytest.fixture(params=["disk", "memory"])
def dump(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Folder:
    """A complete dump with what two killed workers left in it."""
    out = str(tmp_path / "dump") if request.param == "disk" else f"memory://gc{tmp_path}"
    config = small_config(source / "target", source / "data.jsonl", tmp_path)
    run(config.model_copy(update={"out": out}))
    folder = Folder.open(out)
    folder.write(f"{LOST}/states.zarr/aux_2/c/0/0", b"x" * 1000)
    folder.write(f"{LOST}/states.zarr/aux_2/.tmp-abc-0", b"x" * 200)
    folder.write("shards/.tmp-abc-000002.manifest.json", b"x" * 30)
    return folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {key: folder.read(key) for key in folder.list() if not key.startswith(LOST)}


def command(*arguments: str) -> Result:
    return CliRunner().invoke(specpipe, ["gc", *arguments])


def test_only_garbage_goes(dump: Folder) -> None:
    kept = contents(dump)
    shown = gc(dump.url, dry_run=True)
    assert shown.is_dry_run
    assert (shown.num_objects, shown.num_bytes) == (3, 1230)
    assert {piece.key for piece in shown.garbage} == {LOST, "shards/.tmp-abc-000002.manifest.json"}
    assert dump.list(LOST)
    assert dump.leftovers()
    found = gc(dump.url)
    assert (found.num_objects, found.num_bytes, found.garbage) == (3, 1230, shown.garbage)
    assert contents(dump) == kept
    assert dump.list(LOST) == []
    assert dump.leftovers() == {}
    assert verify(dump.url).damages == ()
    assert gc(dump.url).garbage == ()


def test_an_unfinished_dump_is_left_alone(dump: Folder) -> None:
    dump.remove(INDEX_FILE)
    kept = contents(dump)
    with pytest.raises(UnfinishedError, match="--force"):
        gc(dump.url)
    assert dump.list(LOST)
    assert gc(dump.url, dry_run=True).num_objects == 3
    assert dump.list(LOST)
    assert gc(dump.url, force=True).num_objects == 3
    assert contents(dump) == kept
    assert dump.list(LOST) == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("fault", ["truncated", "foreign", "missing", "index"])
def test_nothing_goes_while_a_record_cannot_be_read(
    dump: Folder, fault: str, *, force: bool
) -> None:
    key = INDEX_FILE if fault == "index" else manifest_key(1)
    if fault == "missing":
        dump.remove(key)
    elif fault == "foreign":
        dump.write(key, dump.read(manifest_key(0)))
    else:
        dump.write(key, dump.read(key)[:-20])
    before = dump.list()
    with pytest.raises(IntegrityError, match=key):
        gc(dump.url, force=force)
    assert dump.list() == before


def test_an_attempt_that_is_committed_meanwhile_stays(
    dump: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump.remove(INDEX_FILE)
    manifest = dump.read(manifest_key(1))
    dump.remove(manifest_key(1))
    leftovers = Folder.leftovers

    def commit_meanwhile(folder: Folder) -> dict[str, int]:
        found = leftovers(folder)
        folder.write(manifest_key(1), manifest)
        return found

    monkeypatch.setattr(Folder, "leftovers", commit_meanwhile)
    found = gc(dump.url, force=True)
    assert [piece.key for piece in found.garbage if piece.key.startswith("shards/000001")] == [LOST]
    assert verify(dump.url).damages == ()


def test_the_command(dump: Folder) -> None:
    dry = command(dump.url, "--dry-run")
    assert dry.exit_code == 0
    assert "would free" in dry.output
    assert LOST in dry.output
    assert dump.list(LOST)
    done = command(dump.url, "--json")
    assert done.exit_code == 0
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (values["complete"], values["num_objects"], values["num_bytes"]) == (True, 3, 1230)


def test_no_dump() -> None:
    error = command("memory://gc/nothing").exception
    assert isinstance(error, ConfigError)
    assert "no dump" in str(error)
