"""What a conversation must look like, and the forms in which chat templates take it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from specpipe.schemas.sample import Source
from specpipe.stages.dump.chat_row import given_messages
from specpipe.stages.dump.message_check import REASONING_FIELDS, checked_message, weight_of
from specpipe.stages.dump.template_settings import SETTINGS_FIELD, template_settings_of
from specpipe.stages.dump.tool_schemas import tools_of

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: list[Message]
    """Their content is one string; only a call of tools may go without."""
    tools: list[dict[str, Any]] | None
    template_settings: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, for this conversation alone."""
    context: frozenset[int] = frozenset()
    """Indices of messages that are not supervised, whoever says them."""
    num_left_out: int = 0
    """Messages at the beginning that answer what the row does not hold."""


def conversation_of(row: dict[str, Any], source: Source) -> Conversation:
    """The conversation of a row of `messages`, `conversations` or a `prompt` that is a list.

    Raises InputError.
    """
    given = given_messages(row, source)
    used = [message for message in given if not message.is_left_out]
    messages = [checked_message(message) for message in used]
    return Conversation(
        messages,
        tools_of(row.get("tools"), f"{source}: 'tools'"),
        template_settings_of(row.get(SETTINGS_FIELD), f"{source}: {SETTINGS_FIELD!r}"),
        context=frozenset(
            at for at, message in enumerate(used) if message.is_context or not weight_of(message)
        ),
        num_left_out=len(given) - len(used),
    )


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
