"""`chat_template_kwargs`: the variables that a chat template gets beside the messages."""

from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.schemas.settings.chat_template import not_to_be_set
from specpipe.stages.untrusted.json_text import parse_json

SETTINGS_FIELD = "chat_template_kwargs"
"""As the chat completions API of the engines calls it."""


def template_settings_of(given: Any, where: str) -> dict[str, Any]:
    """An object, perhaps as JSON text, such as {"enable_thinking": false}; {} where there is none.

    Raises InputError, which begins with `where`, for anything else, and for a variable that says
    how a conversation is rendered.
    """
    settings = given
    if isinstance(given, str):
        settings = parse_json(given, where, InputError) if given.strip() else None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise InputError(f"{where} must be an object of template variables, or its JSON text")
    if (name := not_to_be_set(settings)) is not None:
        raise InputError(f"{where}: {name!r} is no variable that can be set")
    return settings
