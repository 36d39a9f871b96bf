"""A conversation as its chat template writes it, in the first form that the template can take."""

from datetime import datetime
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from specpipe.schemas.errors import InputError
from specpipe.stages.dump.messages import Message, forms_of, without_calls
from specpipe.stages.dump.tokens import Span

_render_jinja: Any = render_jinja_template  # its declared result is a str

_DAY_OF_RENDERING = datetime(2024, 7, 26)
"""Templates that print the date get this one: a dump does not depend on the day it is made."""

_REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


def render_chat(
    messages: list[Message], *, marked: bool, **settings: Any
) -> tuple[str, list[Span]]:
    """The text, and the characters between the template's generation markers if asked for.

    `settings` are `chat_template`, `tools`, `add_generation_prompt` and the special tokens.
    Raises InputError where the template refuses the messages, and where it leaves their calls of
    tools out or writes them as Python would.
    """
    refusals = []
    for form in forms_of(messages):
        try:
            text, spans = _rendered(form, marked, settings)
        except _REFUSALS as error:
            refusals.append(f"the chat template refuses it: {error}")
            continue
        if not _shows_calls(form, text, settings):
            refusals.append("the chat template leaves the tool calls out")
        elif _prints_python(form, text):
            refusals.append("the chat template writes the arguments of tool calls as Python does")
        else:
            return text, spans
    raise InputError(refusals[0])


def _rendered(
    messages: list[Message], marked: bool, settings: dict[str, Any]
) -> tuple[str, list[Span]]:
    texts, spans = _render_jinja(
        [messages],
        return_assistant_tokens_mask=marked,
        strftime_now=_DAY_OF_RENDERING.strftime,
        **settings,
    )
    return str(texts[0]), [(start, stop) for start, stop in (spans or [[]])[0]]


def _shows_calls(messages: list[Message], text: str, settings: dict[str, Any]) -> bool:
    """Whether the text is another one than without the calls."""
    bare = without_calls(messages)
    if bare == messages:
        return True
    try:
        return _rendered(bare, False, settings)[0] != text
    except _REFUSALS:
        return True


def _prints_python(messages: list[Message], text: str) -> bool:
    """Whether arguments that are objects stand in the text as Python prints them."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    functions = [call.get("function", call) for call in calls]
    return any(
        isinstance(function, dict)
        and isinstance(function.get("arguments"), dict)
        and "'" in (printed := str(function["arguments"]))
        and printed in text
        for function in functions
    )
