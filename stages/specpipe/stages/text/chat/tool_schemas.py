"""The `tools` of a row: the schemas that its chat template shows to the target."""

from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.stages.text.chat.nulls import without_nulls
from specpipe.stages.untrusted.json_text import parse_json

_MAY_BE_NULL = frozenset({"default", "const"})
"""Keys of a JSON schema for which null is a value."""


def tools_of(given: Any, where: str) -> list[dict[str, Any]] | None:
    """A list of objects, each of them or the whole list perhaps as JSON text; None where empty.

    Raises InputError, which begins with `where`. JSON text is taken to its letter; elsewhere a key
    that is null counts as one that is not there.
    """
    tools = given
    if isinstance(given, str):
        tools = parse_json(given, where, InputError) if given.strip() else None
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise InputError(f"{where} must be a list of objects, or its JSON text")
    is_text = tools is not given
    return [_tool(tool, f"{where}[{at}]", is_text) for at, tool in enumerate(tools)] or None


def _tool(given: Any, where: str, is_text: bool) -> dict[str, Any]:
    tool = parse_json(given, where, InputError) if isinstance(given, str) else given
    if not isinstance(tool, dict):
        raise InputError(f"{where} must be an object, or its JSON text")
    if is_text or tool is not given:
        return tool
    stripped: dict[str, Any] = without_nulls(tool, but=_MAY_BE_NULL)
    return stripped
