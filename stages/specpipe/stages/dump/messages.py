"""What a conversation must look like, and the forms in which chat templates take it."""

import json
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.schemas.sample import Source
from specpipe.stages.dump.json_rows import parse_json

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


def forms_of(messages: list[Message]) -> Iterator[list[Message]]:
    """The forms in which a template may take the messages, the usual one first.

    The API gives the arguments of a tool call as JSON text, most templates want the object, and
    some can only take the text. Engines give a call without content an empty one, which some
    templates take for an answer in place of the call.
    """
    calls = [message for message in messages if message.get("tool_calls")]
    if not calls:
        yield messages
        return
    is_silent = any(message.get("content") is None for message in calls)
    for as_text in (False, True):
        for no_content in ("", None) if is_silent else ("",):
            yield [_in_form(message, as_text, no_content) for message in messages]


def without_calls(messages: list[Message]) -> list[Message]:
    return [
        {key: value for key, value in message.items() if key != "tool_calls"}
        for message in messages
    ]


def _in_form(message: Message, as_text: bool, no_content: str | None) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    content = message.get("content")
    return {
        **message,
        "tool_calls": [_converted(call, as_text) for call in calls],
        "content": no_content if content is None else content,
    }


def _converted(call: dict[str, Any], as_text: bool) -> dict[str, Any]:
    function: dict[str, Any] = call.get("function", call)
    arguments = function.get("arguments")
    if as_text and isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    else:
        return call
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _checked(given: Any, where: str) -> Message:
    """The message with its content as one string and its reasoning in every field that is read.

    Templates render a missing content as nothing and one of another type as Python prints it.
    """
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise InputError(f"{where} must be an object with a 'role'")
    message: Message = given
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if calls:
        _check_calls(calls, where)
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


def _check_calls(calls: Any, where: str) -> None:
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise InputError(f"{where}: 'tool_calls' must be a list of objects")
    for at, call in enumerate(calls):
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{where}: tool_calls[{at}] has no function with a 'name'")
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments:
            arguments = parse_json(arguments, f"{where}: arguments of tool_calls[{at}]")
        if not (arguments is None or arguments == "" or isinstance(arguments, dict)):
            raise InputError(
                f"{where}: arguments of tool_calls[{at}] must be an object, or its JSON text"
            )


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
        raise InputError(
            f"{where} is of type {reprlib.repr(kind)}; only parts of type 'text' can be dumped"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where}: 'text' must be a string")
    return text
