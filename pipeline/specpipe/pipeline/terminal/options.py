"""Options that several commands share, and options whose help stands under headings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from specpipe.schemas.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

_OTHERS = "Other options"
_UNBROKEN = "\N{NON-BREAKING HYPHEN}"


class GroupedOption(click.Option):
    """An option that the help lists under the heading `group`."""

    def __init__(self, group: str, *names: str, **settings: Any) -> None:
        super().__init__(names, **settings)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its options under their headings, in the order of the options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "group", _OTHERS), []).append(record)
        # --config and --json come first in a command's parameters and last in its help.
        for heading in sorted(sections, key=lambda heading: heading == _OTHERS):
            # click breaks lines at hyphens, so at those of a flag's name too.
            rows = [(name, text.replace("-", _UNBROKEN)) for name, text in sections[heading]]
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=26)
        formatter.buffer = [text.replace(_UNBROKEN, "-") for text in formatter.buffer]


def with_options(options: Sequence[click.Option]) -> Callable[[Function], Function]:
    """Give a command ready-made options, in their order, above those that it has already."""

    def decorate(function: Function) -> Function:
        below: Any = function
        # click collects a command's options from below, as decorators run.
        below.__click_params__ = [*getattr(function, "__click_params__", []), *reversed(options)]
        return function

    return decorate


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


def comma_words(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
    """`structure,replay` as a tuple of words."""
    return None if value is None else tuple(part.strip() for part in value.split(","))


def json_object(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> dict[str, Any] | None:
    """`{"a": 1}` as a mapping."""
    if value is None:
        return None
    from specpipe.stages.untrusted.json_text import parse_object

    try:
        return parse_object(value, repr(value), ConfigError)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def named_values(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any] | None:
    """`("a=1", "b=true")` as {"a": 1, "b": True}, values read as YAML; None if there are none."""
    import yaml

    found: dict[str, Any] = {}
    for given in values:
        name, equals, text = given.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{given!r} is not like tensor_parallel_size=2")
        if name in found:
            raise click.BadParameter(f"{name} is given twice")
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise click.BadParameter(f"{given!r}: {text!r} is no YAML value") from None
    return found or None
