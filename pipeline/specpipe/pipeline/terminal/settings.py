"""A command's configuration: a YAML file, with the flags of the command line on top."""

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import Config
from specpipe.stages.untrusted.files import read_file

SomeConfig = TypeVar("SomeConfig", bound=Config)

_NOTHING: Mapping[str, str] = {}
_MOST_VALUES = 100_000


def load_config(
    kind: type[SomeConfig],
    path: Path | None,
    flags: Mapping[str, Any],
    overriding: Mapping[str, str] = _NOTHING,
) -> SomeConfig:
    """The configuration of a command; flags that were not given do not count.

    A mapping among the flags wins over the file's field by field. A setting of the file that is in
    `overriding` gives way to the flag that it names. Raises ConfigError naming the file and every
    field that is wrong.
    """
    values = {} if path is None else read_settings(path)
    flags = given(flags)
    values = {name: value for name, value in values.items() if overriding.get(name) not in flags}
    for name, value in flags.items():
        below = values.get(name)
        if isinstance(value, dict) and below is not None:
            # What is no mapping in the file stays, to be refused.
            values[name] = {**below, **value} if isinstance(below, dict) else below
        else:
            values[name] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        where = "" if path is None else f"{path}: "
        raise ConfigError(where + problems(error)) from None


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given: not None, nor empty."""
    return {name: value for name, value in flags.items() if value not in (None, ())}


def problems(error: ValidationError) -> str:
    """Every setting that is wrong, in words, each once."""
    by_setting: dict[str, Any] = {}
    for found in error.errors():
        # What stands behind an index or a kind of value is inside one setting.
        parts = takewhile(lambda part: isinstance(part, str) and "[" not in part, found["loc"])
        setting = ".".join(map(str, parts))
        # An item that is wrong also counts as missing, and of several kinds of value the one that
        # was meant is wrong farthest inside.
        worst = max(by_setting.get(setting, found), found, key=lambda one: len(one["loc"]))
        by_setting[setting] = worst
    return "; ".join(_problem(setting, found) for setting, found in by_setting.items())


def _problem(setting: str, error: Any) -> str:
    if error["type"] == "missing":
        if isinstance(error["loc"][-1], int):
            return f"{setting}: too few values (got {error['input']!r})"
        flag = f"--{setting.replace('_', '-')}"
        return f"{flag} is missing (give the flag, or {setting}: in the file)"
    if error["type"] == "extra_forbidden":
        return f"there is no setting {setting!r}"
    # One of our own is said in its own words alone.
    says = str(error["ctx"]["error"] if error["type"] == "value_error" else error["msg"])
    return f"{setting}: {says} (got {error['input']!r})" if setting else says


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; raises ConfigError where it holds none."""
    try:
        values = yaml.safe_load(read_file(path, ConfigError, or_pipe=True).decode("utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"configuration {path} is not a mapping of settings to values")
    if _holds_more(values, _MOST_VALUES):
        raise ConfigError(
            f"configuration {path} holds more than {_MOST_VALUES} values, or an alias of what it"
            " stands in"
        )
    return values


def _holds_more(values: Any, most: int) -> bool:
    """Whether there are more values than `most`, each alias counted as what it stands for."""
    rest, seen = [values], 0
    while rest:
        value = rest.pop()
        seen += 1
        if seen + len(rest) > most:
            return True
        if isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return False
