"""Checks of one message of a conversation."""

import reprlib
from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.stages.text.chat.nulls import without_nulls
from specpipe.stages.text.chat.roles import ASSISTANT
from specpipe.stages.text.chat.row import GivenMessage
from specpipe.stages.untrusted.json_text import parse_json

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Templates read an assistant's reasoning from one of these."""

_WEIGHT = "weight"


def weight_of(message: GivenMessage) -> int:
    """1 where the message is trained on if the assistant says it, 0 where it is not.

    The fine-tuning API's field. Raises InputError for any other value.
    """
    weight = message.value.get(_WEIGHT)
    if weight is None:
        return 1
    if isinstance(weight, bool) or weight not in (0, 1):
        raise InputError(f"{message.where}: 'weight' is {reprlib.repr(weight)}; it must be 0 or 1")
    return int(weight)


def checked_message(given: GivenMessage) -> dict[str, Any]:
    """The message with its content as one string and its reasoning in every field that is read.

    Keys that are null, and calls of tools that are none, are left out: templates ask whether they
    are there. Templates render a missing content as nothing and one of another type as Python
    prints it. Raises InputError.
    """
    where, role = given.where, given.role
    message: dict[str, Any] = without_nulls(given.value, but=frozenset({"arguments"}))
    message.pop(_WEIGHT, None)
    content, calls = message.get("content"), message.pop("tool_calls", None)
    if calls:
        message["tool_calls"] = _checked_calls(calls, where)
    if role == ASSISTANT:
        message = _with_reasoning(message, where)
    if content is None:
        if role == ASSISTANT and calls:
            return message
        lacks = "neither 'content' nor 'tool_calls'" if role == ASSISTANT else "no 'content'"
        raise InputError(f"{where} ({role}) has {lacks}")
    if isinstance(content, str):
        return message
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}: 'content' must be a string or a list of text parts")
    texts = [_text(part, f"{where}.content[{at}]") for at, part in enumerate(content)]
    return {**message, "content": "".join(texts)}


def _checked_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise InputError(f"{where}: 'tool_calls' must be a list of objects")
    return [_checked_call(call, f"tool_calls[{at}]", where) for at, call in enumerate(calls)]


def _checked_call(call: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The call with arguments, as engines have it, where it is given without."""
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(f"{where}: {name} has no function with a 'name'")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments:
        arguments = parse_json(arguments, f"{where}: arguments of {name}", InputError)
    if arguments is None:
        function = {**function, "arguments": {}}
        return {**call, "function": function} if "function" in call else function
    if not (arguments == "" or isinstance(arguments, dict)):
        raise InputError(f"{where}: arguments of {name} must be an object, or its JSON text")
    return call


def _with_reasoning(message: dict[str, Any], where: str) -> dict[str, Any]:
    given = {field: message[field] for field in REASONING_FIELDS if message.get(field) is not None}
    rest = {key: value for key, value in message.items() if key not in REASONING_FIELDS}
    if not given:
        return rest
    field, reasoning = next(iter(given.items()))
    if not isinstance(reasoning, str):
        raise InputError(f"{where}: {field!r} must be a string")
    if any(other != reasoning for other in given.values()):
        raise InputError(f"{where}: {' and '.join(map(repr, given))} differ; give one")
    return rest | dict.fromkeys(REASONING_FIELDS, reasoning)


def _text(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise InputError(
            f"{where} is of type {reprlib.repr(kind)}; only parts of type 'text' can be dumped"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where}: 'text' must be a string")
    return text
