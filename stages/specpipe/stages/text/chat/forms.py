"""The forms in which chat templates take the messages of a conversation."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specpipe.stages.text.chat.messages import Message


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write the messages; each takes away the reason for which a template fails."""

    arguments_as_text: bool = False
    """The API gives the arguments of a call as JSON text, most templates want the object."""
    no_content: str | None = ""
    """Engines give a call without content an empty one, which some templates take for an answer
    in place of the call."""
    content_in_parts: bool = False
    """Templates of models that see take content as a list of parts only."""

    def of(self, messages: list[Message]) -> list[Message]:
        return [self._message(message) for message in messages]

    def _message(self, message: Message) -> Message:
        if calls := message.get("tool_calls"):
            content = message.get("content")
            message = {
                **message,
                "tool_calls": [_converted(call, self.arguments_as_text) for call in calls],
                "content": self.no_content if content is None else content,
            }
        if not self.content_in_parts:
            return message
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if content else []
        return {**message, "content": parts}


def forms_for(messages: list[Message]) -> Iterator[Form]:
    """The forms that make a difference to these messages, the usual one first."""
    calls = [message for message in messages if message.get("tool_calls")]
    is_silent = any(message.get("content") is None for message in calls)
    for in_parts in (False, True):
        for as_text in (False, True) if calls else (False,):
            for no_content in ("", None) if is_silent else ("",):
                yield Form(as_text, no_content, in_parts)


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
