"""The flags of a command: names are listed by hand; type, choices, default and help come from
the settings.

Type, choices, default and help of a setting stand once, in its field and the docstring below it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from specpipe.pipeline.terminal.options import GroupedOption, comma_words

Models = Sequence[type[BaseModel]]
_CLICK_TYPES: dict[Any, Any] = {int: click.INT, float: click.FLOAT}
_DEFAULT = "[default: "


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag with further names, or with options of click that its setting does not have."""

    names: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def setting(self) -> str:
        """Name of the setting: the last name if that is one, else that of the first flag."""
        first, last = self.names[0].partition("/")[0], self.names[-1]
        return last if last.isidentifier() else first.lstrip("-").replace("-", "_")


def flag(*names: str, **settings: Any) -> Flag:
    """`names` are as for click.Option: flags, and the setting's name where it is another one."""
    return Flag(names, settings)


def flags_of(
    models: Models, headings: Mapping[str, Sequence[str | Flag]]
) -> tuple[click.Option, ...]:
    """Options for the flags under each heading; each sets the setting of its name.

    The setting is a field of the first of the models that has one of this name.
    """
    return tuple(
        _option(models, heading, one if isinstance(one, Flag) else flag(one))
        for heading, listed in headings.items()
        for one in listed
    )


def _option(models: Models, heading: str, one: Flag) -> click.Option:
    field = next(m.model_fields[one.setting] for m in models if one.setting in m.model_fields)
    options = {"default": None, "help": help_of(field), **_of_type(field.annotation)}
    return GroupedOption(heading, *one.names, **{**options, **one.settings})


def help_of(field: FieldInfo) -> str:
    """The docstring, with the default where it does not say itself what happens by default."""
    text = " ".join((field.description or "").split())
    shown = _shown(field.default)
    if shown and _DEFAULT not in text:
        text += f" {_DEFAULT}{shown}]"
    return text.replace(f" {_DEFAULT}", f"  {_DEFAULT}")


def _shown(default: Any) -> str:
    """A default as it is given on the command line; empty where there is nothing to say."""
    if isinstance(default, bool):
        return "on" if default else ""
    if isinstance(default, tuple):
        return ",".join(map(_shown, default))
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if isinstance(default, int | str) else ""


def _of_type(annotation: Any) -> dict[str, Any]:
    """What click is to know of a setting's type; pydantic checks the rest."""
    kinds = list(_kinds(annotation))
    kind, arguments = kinds[0], get_args(kinds[0])
    if len(kinds) > 1:
        return {"metavar": "|".join(map(_word, kinds))}
    if kind is bool or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return {"is_flag": True}
    if get_origin(kind) is Literal:
        return {"type": click.Choice(arguments)}
    if get_origin(kind) is tuple and list(_kinds(arguments[0])) == [str]:
        return {"multiple": True}
    if get_origin(kind) is tuple:
        return {"metavar": _word(kind), "callback": comma_words}
    return {"type": _CLICK_TYPES.get(kind)}


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a value may have, without None and without what is checked beyond them."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif isinstance(annotation, type) or get_origin(annotation) in (Literal, tuple, dict):
        if annotation is not NoneType:
            yield annotation
    else:
        for part in get_args(annotation):
            yield from _kinds(part)


def _word(kind: Any) -> str:
    """What stands for a value of this type."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return ",".join(
            "..." if part is Ellipsis else _word(*_kinds(part)) for part in get_args(kind)
        )
    return {int: "INTEGER", float: "FLOAT"}.get(kind, "TEXT")
