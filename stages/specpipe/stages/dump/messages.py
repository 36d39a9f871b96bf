"""What a conversation must look like, and the forms in which chat templates take it."""

import json
from dataclasses import dataclass
from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.schemas.sample import Source

Message = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Templates read an assistant's reasoning from one of these."""


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: list[Message]
    """Their content is one string; only a call of tools may go without."""
    tools: list[dict[str, Any]] | None


def conversation_of(row: dict[str, Any], source: Source) -> Conversation:
    """The conversation of a row of `messages` and perhaps `tools`; raises InputError."""
    messages, tools = row["messages"], row.get("tools")
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{source}: 'messages' must be a list of messages")
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise InputError(f"{source}: 'tools' must be a list of objects")
    checked = [
        _checked(message, f"{source}: messages[{at}]") for at, message in enumerate(messages)
    ]
    return Conversation(checked, tools or None)


def reasoning_of(message: Message) -> str:
    return message.get(REASONING_FIELDS[0]) or ""


def with_arguments(messages: list[Message], *, as_text: bool) -> list[Message]:
    """The messages with the arguments of each tool call as JSON text, or as an object.

    The API gives text, most templates want the object, and some can only take the text.
    """
    return [
        {**message, "tool_calls": [_converted(call, as_text) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _converted(call: dict[str, Any], as_text: bool) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _checked(message: Any, where: str) -> Message:
    """The message with its content as one string and its reasoning in every field that is read.

    Templates render a missing content as nothing and one of another type as Python prints it.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"{where} must be an object with a 'role'")
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if calls and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise InputError(f"{where}: 'tool_calls' must be a list of objects")
    if role == "assistant":
        message = _with_reasoning(message, where)
    if content is None:
        if role == "assistant" and calls:
            return message
        lacks = "neither 'content' nor 'tool_calls'" if role == "assistant" else "no 'content'"
        raise InputError(f"{where} ({role}) has {lacks}")
    if isinstance(content, str):
        return message
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}: 'content' must be a string or a list of text parts")
    texts = [_text(part, f"{where}.content[{at}]") for at, part in enumerate(content)]
    return {**message, "content": "".join(texts)}


def _with_reasoning(message: Message, where: str) -> Message:
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
        raise InputError(f"{where} is of type {kind!r}; only parts of type 'text' can be dumped")
    text = part.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where}: 'text' must be a string")
    return text
