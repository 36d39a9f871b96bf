"""Flags that take type, choices, default and help from the settings that they set."""

from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, ConfigDict, Field

from specpipe.pipeline.cli import specpipe
from specpipe.pipeline.terminal.flags import flag, flags_of
from specpipe.pipeline.terminal.options import GroupedCommand, with_options


class Inner(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    width: int | None = Field(None, gt=0)
    """Width, which is
    wrapped here. [default: the target's]"""
    rate: Annotated[float, Field(gt=0)] = 0.5
    """Rate."""


class Outer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    inner: Inner | None = None
    """With the inner ones."""
    kind: Literal["a", "b"] = "a"
    """Kind."""
    either: int | Literal["auto"] | None = None
    """Either."""
    norm: bool = True
    """Norm."""
    ids: tuple[int, ...] = (3, 5)
    """Ids."""
    pair: tuple[Annotated[float, Field(ge=0)], float] = (0.9, 0.95)
    """Pair."""
    texts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts."""
    levels: tuple[Literal["x", "y"], ...] = ("x",)
    """Levels."""


FLAGS = flags_of(
    (Outer, Inner),
    {
        "First": ("--kind", "--either", "--norm/--no-norm", "--ids", "--pair", "--inner"),
        "Second": (
            "--texts",
            "--levels",
            flag("--width", metavar="N"),
            flag("--speed", "--rate", "rate"),
        ),
    },
)


@click.command(cls=GroupedCommand)
@with_options(FLAGS)
def command(**given: Any) -> None:
    click.echo({name: value for name, value in given.items() if value})


HELP = """\
First:
  --kind [a|b]           Kind.  [default: a]
  --either INTEGER|auto  Either.
  --norm / --no-norm     Norm.  [default: on]
  --ids INTEGER,...      Ids.  [default: 3,5]
  --pair FLOAT,FLOAT     Pair.  [default: 0.9,0.95]
  --inner                With the inner ones.

Second:
  --texts TEXT           Texts.
  --levels x|y,...       Levels.  [default: x]
  --width N              Width, which is wrapped here.  [default: the target's]
  --speed, --rate FLOAT  Rate.  [default: 0.5]
"""


def test_the_help_is_made_of_the_fields() -> None:
    shown = CliRunner().invoke(command, ["--help"], terminal_width=90).output
    assert HELP in shown


def test_what_is_not_given_is_nothing() -> None:
    assert CliRunner().invoke(command, []).output == "{}\n"


def test_values_are_what_the_settings_take() -> None:
    arguments = ["--width", "4", "--rate", "0.1", "--ids", "1,2", "--texts", "q", "--texts", "r"]
    given = command.make_context("c", [*arguments, "--norm", "--pair", "0.1,0.2", "--inner"]).params
    inner = Inner.model_validate({name: given[name] for name in ("width", "rate")})
    assert inner == Inner(width=4, rate=0.1)
    names = ("norm", "ids", "pair", "texts")
    outer = Outer.model_validate({name: given[name] for name in names})
    assert outer == Outer(norm=True, ids=(1, 2), pair=(0.1, 0.2), texts=("q", "r"))
    assert given["inner"] is True


def test_a_choice_that_there_is_not() -> None:
    done = CliRunner().invoke(command, ["--kind", "c"])
    assert done.exit_code == 2
    assert "'c' is not one of 'a', 'b'" in done.output


@pytest.mark.parametrize("name", specpipe.commands)
def test_every_flag_says_what_it_does(name: str) -> None:
    options = [one for one in specpipe.commands[name].params if isinstance(one, click.Option)]
    assert [one.name for one in options if not (one.help or "").partition("[default")[0]] == []
