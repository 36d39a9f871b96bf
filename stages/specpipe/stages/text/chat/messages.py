"""The conversation of a row, checked."""

from dataclasses import dataclass, field
from typing import Any

from specpipe.schemas.records.sample import Source
from specpipe.stages.text.chat.message_check import REASONING_FIELDS, checked_message, weight_of
from specpipe.stages.text.chat.row import given_messages
from specpipe.stages.text.chat.template_settings import SETTINGS_FIELD, template_settings_of
from specpipe.stages.text.chat.tool_schemas import tools_of

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
