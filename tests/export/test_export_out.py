"""What an export may overwrite, and how it goes on after a kill."""

import json
import shutil
from pathlib import Path

import pytest

from specpipe.schemas.errors import ConfigError, StoreError
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.stages.drafters.artifact_format import Format
from specpipe.stages.export import run as export_run
from specpipe.stages.export.out_folder import LOCK_FILE, OutFolder
from specpipe.stages.export.run import run
from tests.validate.small import Trained


def config(trained: Trained, out: Path) -> ExportConfig:
    return ExportConfig(checkpoint=str(trained.run), out=str(out), replay_samples=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name", ["README.md", "checkpoint/notes.txt", "validation.json", "provenance.json"]
)
def test_foreign_files_are_left_alone(trained: Trained, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"passed": true}')
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"already has {Path(name).parts[0]}, which no export"):
        run(config(trained, tmp_path))
    assert contents(tmp_path) == before


def test_folder_with_other_files_is_taken(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("mine")
    run(config(trained, tmp_path))
    assert (tmp_path / "pyproject.toml").read_text() == "mine"


def test_training_run_is_no_place_for_an_export(trained: Trained) -> None:
    before = contents(trained.run)
    for folder in (trained.run, trained.run / "checkpoints" / "step-00000006"):
        with pytest.raises(ConfigError, match="is a training run or a checkpoint"):
            run(config(trained, folder))
    assert contents(trained.run) == before


def test_file_in_the_place_of_the_folder(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/out"):
        with pytest.raises(ConfigError, match="is a file"):
            run(config(trained, tmp_path / out))


@pytest.mark.parametrize("at", ["the artifact", "the validation", "the card"])
def test_killed_export_is_continued(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    if at == "the artifact":
        monkeypatch.setattr(Format, "write", killed)
    else:
        name = "_validate" if at == "the validation" else "model_card"
        monkeypatch.setattr(export_run, name, killed)
    with pytest.raises(KeyboardInterrupt):
        run(config(trained, tmp_path))
    left = json.loads((tmp_path / "validation.json").read_text())
    assert not left["passed"]
    assert "has not finished" in left["problems"][0]
    monkeypatch.undo()
    assert not run(config(trained, tmp_path)).did_nothing
    assert run(config(trained, tmp_path)).did_nothing
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"checkpoint", "validation.json", "README.md", LOCK_FILE}


def test_two_exports_do_not_share_a_folder(trained: Trained, tmp_path: Path) -> None:
    with OutFolder(str(tmp_path)).locked(), pytest.raises(ConfigError, match="another export"):
        run(config(trained, tmp_path))
    assert {p.name for p in tmp_path.iterdir()} == {LOCK_FILE}
    assert not run(config(trained, tmp_path)).did_nothing


def test_validation_of_another_version_is_ours(
    trained: Trained, exported: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "out"))
    validation = json.loads((out / "validation.json").read_text())
    (out / "validation.json").write_text(json.dumps(validation | {"unknown": 1}))
    assert not run(config(trained, out)).did_nothing


def test_out_that_cannot_be_written(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(StoreError, match="cannot write to"):
        run(config(trained, tmp_path))


@pytest.mark.parametrize("name", ["out", "checkpoint"])
def test_remote_location_is_refused_without_its_password(trained: Trained, name: str) -> None:
    changes = {name: "s3://me:secret@bucket/it"}
    with pytest.raises(ConfigError, match="local disk") as caught:
        run(config(trained, Path("out")).model_copy(update=changes))
    assert "s3://bucket/it" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_password_in_the_artifact(trained: Trained, tmp_path: Path) -> None:
    changes = {"target": "https://me:secret@host/it?token=secret"}
    run(config(trained, tmp_path).model_copy(update=changes))
    assert not [name for name, data in contents(tmp_path).items() if b"secret" in data]


def test_dump_that_has_moved(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(trained.run, tmp_path / "run"))
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"dump": "runs/dump"}))
    monkeypatch.chdir(tmp_path)
    moved = ExportConfig(checkpoint=str(copy), out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"no dump at .*runs/dump.*give --dump"):
        run(moved)
    assert run(moved.model_copy(update={"dump": str(trained.dump)})).levels["replay"]
