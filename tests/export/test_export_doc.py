"""The commands of docs/export.md on converting and validating, as they stand there."""

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import ValidationError
from tests.validate.artifacts import edit_tensors
from tests.validate.small import Trained

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split(" # ")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    # Of a server: test_export_serve.py.
    if line.startswith(("specpipe convert", "specpipe validate")) and "--serve-url" not in line
]


@pytest.fixture
def here(trained: Trained, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the page's paths exist; SRC is as SpecForge writes it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "artifact").symlink_to(exported)
    (tmp_path / "runs" / "demo" / "dump").symlink_to(trained.dump)
    (tmp_path / "TARGET").symlink_to(trained.target)
    (tmp_path / "SRC").mkdir()
    tensors = load_file(exported / "checkpoint" / "model.safetensors")
    theirs = {name.replace("layers.0.", "midlayer."): t for name, t in tensors.items()}
    save_file(theirs, tmp_path / "SRC" / "model.safetensors")
    config = json.loads((exported / "checkpoint" / "config.json").read_text())
    layer = config["transformer_layer_config"]
    layer["rope_theta"] = layer.pop("rope_parameters")["rope_theta"]
    flat = layer | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 64}
    (tmp_path / "SRC" / "config.json").write_text(json.dumps(flat))
    return tmp_path


def ours(command: str) -> list[str]:
    program, *arguments = shlex.split(command)
    assert program == "specpipe"
    return [word.replace(",serve", "") for word in arguments]


def test_the_commands_do_what_the_page_says(here: Path, exported: Path) -> None:
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        done = CliRunner().invoke(specpipe, [*ours(command), "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout.splitlines()[-1])
        again = CliRunner().invoke(specpipe, [*ours(command), "--json"], catch_exceptions=False)
        if "convert" in command:
            assert not result["did_nothing"]
            assert json.loads(again.stdout.splitlines()[-1])["did_nothing"]
        else:
            assert result["passed"]
            assert result["replay"]["compared_with"] == "recomputed"
    assert json.loads((here / "findings.json").read_text())["passed"]
    ours_again = load_file(here / "OUT" / "model.safetensors")
    assert set(ours_again) == set(load_file(exported / "checkpoint" / "model.safetensors"))
    assert (here / "OUT" / "provenance.json").exists()


def test_a_failed_validation_leaves_its_findings(here: Path) -> None:
    runner = CliRunner()
    runner.invoke(specpipe, ours(COMMANDS[1]), catch_exceptions=False)
    folder = here / "runs" / "demo" / "eagle3"
    edit_tensors(folder, lambda tensors: tensors.pop("d2t"))
    command = ["validate", str(folder), "--dump", "runs/demo/dump", "--out", "findings.json"]
    with pytest.raises(ValidationError, match="tensor d2t is missing"):
        runner.invoke(specpipe, command, catch_exceptions=False)
    assert json.loads((here / "findings.json").read_text())["problems"] == [
        "structure: tensor d2t is missing"
    ]
