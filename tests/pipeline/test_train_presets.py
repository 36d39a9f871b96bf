"""Presets: below the file, which is below the flags; shown in the help; resolved in config.json."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from specpipe.pipeline.cli import specpipe
from specpipe.pipeline.train_options import train_config
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.presets import MEASURED, PRESETS
from specpipe.schemas.train_config import TrainConfig


def from_file(tmp_path: Path, text: str, **flags: object) -> TrainConfig:
    file = tmp_path / "train.yaml"
    file.write_text(f"dump: d\nout: o\n{text}")
    return train_config(file, flags)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_configuration_that_is_recorded_whole(
    name: str, tmp_path: Path
) -> None:
    config = from_file(tmp_path, "", preset=name)
    assert config == from_file(tmp_path, f"preset: {name}\n")
    assert config == TrainConfig.model_validate(
        {"dump": "d", "out": "o", **PRESETS[name].settings}  # type: ignore[index]
    )
    assert "preset" not in config.model_dump()


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    preset = PRESETS["quick"].settings
    config = from_file(
        tmp_path, "preset: best\nlearning_rate: 0.5\n", preset="quick", batch_tokens=77
    )
    assert config.learning_rate == 0.5
    assert config.batch_tokens == 77
    assert config.max_steps == preset["max_steps"]


@pytest.mark.parametrize("where", ["flag", "file"])
def test_num_epochs_does_away_with_the_steps_of_what_is_below(where: str, tmp_path: Path) -> None:
    if where == "flag":
        config = from_file(tmp_path, "max_steps: 7\n", preset="quick", num_epochs=3)
    else:
        config = from_file(tmp_path, "num_epochs: 3\n", preset="quick")
    assert (config.max_steps, config.num_epochs) == (None, 3)
    beside = from_file(tmp_path, "max_steps: 7\nnum_epochs: 3\n", preset="quick")
    assert beside.max_steps == 7


def test_batch_tokens_do_away_with_the_batch_size_of_the_file(tmp_path: Path) -> None:
    config = from_file(tmp_path, "batch_size: 8\n", batch_tokens=512)
    assert (config.batch_size, config.batch_tokens) == (None, 512)
    assert from_file(tmp_path, "batch_size: 8\n", preset="quick").batch_size == 8


def test_default_is_no_preset_at_all(tmp_path: Path) -> None:
    assert from_file(tmp_path, "preset: default\n") == from_file(tmp_path, "")


def test_unknown_presets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preset: 'fast' is none of quick, default, best"):
        from_file(tmp_path, "preset: fast\n")


def test_the_help_shows_every_setting_and_figure_of_every_preset() -> None:
    shown = CliRunner().invoke(specpipe, ["train", "--help"], terminal_width=80)
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= 80
    text = " ".join(shown.output.split())
    for name, preset in PRESETS.items():
        assert f" {name} " in text
        for setting, value in preset.settings.items():
            assert f"--{setting.replace('_', '-')} {value}" in text
        assert preset.figures in text
    assert MEASURED in text


def test_every_setting_has_a_flag() -> None:
    from specpipe.pipeline.train_command import train

    assert TrainConfig.model_fields.keys() <= {parameter.name for parameter in train.params}
