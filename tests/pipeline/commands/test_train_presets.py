"""What flags and the file leave of each other, and what the help says of what is left open."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args

import pytest
from click.testing import CliRunner

from specpipe.pipeline.cli import specpipe
from specpipe.pipeline.commands.train.options import of_drafters, train_config
from specpipe.schemas.drafters.base import LayerSettings
from specpipe.schemas.drafters.registry import KINDS, settings_fields
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.recipe import BUDGETS
from specpipe.schemas.settings.train import PresetName, TrainConfig
from specpipe.schemas.settings.tune import TuneConfig


def from_file(tmp_path: Path, text: str, **flags: object) -> TrainConfig:
    file = tmp_path / "train.yaml"
    file.write_text(f"dump: d\nout: o\n{text}")
    return train_config(file, flags)


def test_a_preset_is_a_setting_like_others(tmp_path: Path) -> None:
    assert from_file(tmp_path, "preset: quick\n").preset == "quick"
    assert from_file(tmp_path, "preset: quick\n", preset="best").preset == "best"
    assert from_file(tmp_path, "preset: default\n") == from_file(tmp_path, "")
    with pytest.raises(ConfigError, match=r"preset: .*'quick', 'default' or 'best'"):
        from_file(tmp_path, "preset: fast\n")


def test_num_epochs_do_away_with_the_steps_of_the_file(tmp_path: Path) -> None:
    config = from_file(tmp_path, "max_steps: 7\n", num_epochs=3)
    assert (config.max_steps, config.num_epochs) == (None, 3)
    assert from_file(tmp_path, "max_steps: 7\nnum_epochs: 3\n").max_steps == 7


def test_batch_tokens_do_away_with_the_batch_size_of_the_file(tmp_path: Path) -> None:
    config = from_file(tmp_path, "batch_size: 8\n", batch_tokens=512)
    assert (config.batch_size, config.batch_tokens) == (None, 512)


@pytest.mark.parametrize("command", ["train", "tune"])
def test_the_help_shows_every_budget(command: str) -> None:
    shown = CliRunner().invoke(specpipe, [command, "--help"], terminal_width=80)
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= 80
    text = " ".join(shown.output.split())
    assert BUDGETS.keys() == set(get_args(PresetName))
    for name, budget in BUDGETS.items():
        steps = budget.most_steps or budget.steps
        assert f"--preset {name} " in text
        assert f"{steps:,}" in text[text.index(f"--preset {name} ") :]


def test_every_setting_has_a_flag() -> None:
    from specpipe.pipeline.commands.train.command import train

    flags = {parameter.name for parameter in train.params}
    assert TrainConfig.model_fields.keys() | settings_fields().keys() <= flags


class ToySettings(LayerSettings):
    kind: Literal["toy"] = "toy"
    num_layers: int = 5
    """Layers of a toy."""


def test_flags_say_for_which_drafters_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = SimpleNamespace(settings=ToySettings)
    kinds = cast(dict[str, Any], KINDS)
    for name in set(kinds) - {"eagle3"}:
        monkeypatch.delitem(kinds, name)
    monkeypatch.setitem(kinds, "toy", toy)
    helps = [one.settings["help"] for one in of_drafters("--num-layers", "--fc-norm", "--head-dim")]
    assert helps[0].startswith("eagle3: Decoder layers; ")
    assert helps[0].endswith("  [default: 1] toy: Layers of a toy.  [default: 5]")
    assert helps[1:] == [
        "eagle3: RMSNorm on each auxiliary state.",
        "Size of a head.  [default: the target's]",
    ]


def test_tune_has_no_flag_that_it_refuses() -> None:
    flags = {parameter.name for parameter in specpipe.commands["tune"].params}
    assert TuneConfig.model_fields.keys() - flags == {"learning_curve"}
