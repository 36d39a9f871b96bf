"""The flags of `specpipe dump`: every setting has one, and what they make."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from specpipe.pipeline.cli import specpipe
from specpipe.pipeline.commands.dump.command import dump
from specpipe.pipeline.commands.dump.options import dump_config
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig, GenerateConfig

GIVEN = ("--target", "t", "--data", "a.jsonl", "--out", "o")


def configured(*arguments: str) -> DumpConfig:
    """The configuration that the command line makes."""
    context = dump.make_context("dump", [*GIVEN, *arguments])
    flags: dict[str, Any] = dict(context.params)
    flags.pop("as_json")
    return dump_config(flags.pop("config_file"), flags)


def test_every_setting_has_a_flag() -> None:
    flags = {parameter.name for parameter in dump.params}
    assert flags == {
        *DumpConfig.model_fields,
        *GenerateConfig.model_fields,
        "config_file",
        "as_json",
    }


def test_plan_takes_the_flags_of_dump() -> None:
    plan = specpipe.commands["plan"]
    options = [parameter for parameter in plan.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options] == [option.name for option in dump.params]


def test_without_flags_everything_is_as_by_default() -> None:
    assert configured() == DumpConfig(target="t", data=("a.jsonl",), out="o")


def test_engine_options_are_values_not_texts() -> None:
    config = configured(
        *("--engine", "tensor_parallel_size=2", "--engine", "enforce-eager=true"),
        *("--engine", "quantization=fp8", "--engine", "gpu_memory_utilization=0.8"),
        *("--engine", 'hf_overrides={"a": [1, null]}', "--engine", "load_format='1'"),
    )
    assert config.engine == {
        "tensor_parallel_size": 2,
        "enforce_eager": True,
        "quantization": "fp8",
        "gpu_memory_utilization": 0.8,
        "hf_overrides": {"a": [1, None]},
        "load_format": "1",
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [("a", "is not like"), ("=1", "is not like"), ("a b=1", "is not like"), ("a=[", "no YAML")],
)
def test_an_engine_option_that_is_none(value: str, words: str) -> None:
    with pytest.raises(click.BadParameter, match=words):
        configured("--engine", value)


def test_an_engine_option_is_given_once() -> None:
    with pytest.raises(click.BadParameter, match="twice"):
        configured("--engine", "a=1", "--engine", "a=2")


def test_generation_is_nested() -> None:
    assert configured("--generate").generate == GenerateConfig()
    config = configured(
        *("--generate", "--temperature", "0", "--top-p", "0.9", "--max-tokens", "7"),
        *("--stop", "\n\n", "--stop", "END", "--seed", "3", "--samples-per-prompt", "4"),
    )
    assert config.generate == GenerateConfig(
        temperature=0, top_p=0.9, max_tokens=7, stop=("\n\n", "END"), seed=3, samples_per_prompt=4
    )
    assert configured("--generate", "--generate-seed", "5").generate == GenerateConfig(seed=5)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--temperature", "0"),
        ("--top-p", "1"),
        ("--max-tokens", "1"),
        ("--stop", "x"),
        ("--seed", "0"),
        ("--samples-per-prompt", "1"),
    ],
)
def test_a_flag_of_generation_needs_generation(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag}: only with --generate"):
        configured(flag, value)


def test_flags_win_over_the_file_field_by_field(tmp_path: Path) -> None:
    file = tmp_path / "dump.yaml"
    file.write_text(
        "generate: {temperature: 0.5, max_tokens: 9, stop: [a]}\nengine: {a: 1, b: 2}\n"
    )
    config = configured("--config", str(file), "--temperature", "0.7", "--engine", "b=3")
    assert config.generate == GenerateConfig(temperature=0.7, max_tokens=9, stop=("a",))
    assert config.engine == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("generate: true\n", "generate"),
        ("generate: {temprature: 1}\n", "generate.temprature"),
        ("generate: {top_p: 2}\n", "generate.top_p"),
        ("engine: [a]\n", "engine"),
        ("logits: topk:0\n", "logits"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--generate", "--engine", "a=1")])
def test_files_that_are_wrong(
    text: str, words: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "dump.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        configured("--config", str(file), *flags)


def test_the_help_has_headings() -> None:
    shown = CliRunner().invoke(specpipe, ["dump", "--help"], terminal_width=80).output
    headings = [
        "What goes in:",
        "What is stored:",
        "How the target runs:",
        "On-policy text (--generate):",
        "Who does it:",
        "Other options:",
    ]
    found = [shown.index(heading) for heading in headings]
    assert found == sorted(found)


def test_variables_of_the_chat_template(tmp_path: Path) -> None:
    given = configured("--chat-template-kwargs", '{"enable_thinking": false, "effort": "low"}')
    assert given.chat_template_kwargs == {"enable_thinking": False, "effort": "low"}
    file = tmp_path / "dump.yaml"
    file.write_text("chat_template_kwargs: {effort: high, date: 1}\n")
    merged = configured("--config", str(file), "--chat-template-kwargs", '{"effort": "low"}')
    assert merged.chat_template_kwargs == {"effort": "low", "date": 1}
    for text in ("{", "[1]", '{"a": NaN}'):
        with pytest.raises(click.BadParameter):
            configured("--chat-template-kwargs", text)
    for name in ("messages", "tools", "add_generation_prompt", "bos_token"):
        with pytest.raises(ConfigError, match=f"{name}' is no variable that can be set"):
            configured("--chat-template-kwargs", f'{{"{name}": 1}}')
    file.write_text("chat_template_kwargs: {date: 2024-07-26}\n")
    with pytest.raises(ConfigError, match="values that JSON can hold"):
        configured("--config", str(file))
