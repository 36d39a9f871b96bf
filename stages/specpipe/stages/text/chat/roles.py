"""Roles of messages: the names that datasets give them, and the usual ones."""

import re
from collections.abc import Iterable
from typing import Any

from specpipe.schemas.errors import InputError

ASSISTANT = "assistant"

_SPELLINGS = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bard": ASSISTANT,
    "bing": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    "chatbot": ASSISTANT,
    "ai": ASSISTANT,
}
_STANDARD = ("system", "developer", "user", ASSISTANT, "tool")
_OF_FAMILIES = ("function", "ipython", "observation", "document", "documents", "context")
"""What some families call a tool's answer and texts to look things up in."""

CALLS = ("function_call", "tool_call", "tool_calls")
"""What ShareGPT calls a turn that calls tools; its value is the JSON text of the calls."""
RESULTS = ("observation", "tool_response", "tool_result", "function_response", "function")
"""What ShareGPT calls the answer of a tool."""


def standard_role(role: str) -> str:
    """The role as engines and chat templates call it; one that is not known stays as it is."""
    plain = role.strip().lower()
    return plain if plain in _STANDARD else _SPELLINGS.get(plain, role)


def check_roles(messages: Iterable[dict[str, Any]], template: str) -> None:
    """Raise InputError for a role that neither data nor the chat template use: a misspelt one.

    Many templates write whatever they are given, so that nothing else would tell.
    """
    for at, role in enumerate(message["role"] for message in messages):
        if role in (*_STANDARD, *_OF_FAMILIES):
            continue
        if not re.search(rf"\b{re.escape(role)}\b", template):
            raise InputError(
                f"messages[{at}] has the role {role!r}, which the target's chat template does not "
                f"name, and which is none of {', '.join(_STANDARD)}"
            )
