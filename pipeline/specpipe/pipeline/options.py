"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


def config_option(function: Function) -> Function:
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="YAML file of settings; flags win over it.",
    )(function)


def json_option(function: Function) -> Function:
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout."
    )(function)


def comma_integers(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    """`2,16,29` as a tuple of integers."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list like 2,16,29") from None


def comma_words(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    """`structure,replay` as a tuple of words."""
    return None if value is None else tuple(part.strip() for part in value.split(","))
