"""Parts of a conversation that its chat template leaves out.

A template passes over messages of a role for which it has no branch, without an error. What it
shows is known by its effect: with another text in the place of what is shown, the rendering is
another one.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.stages.text.chat.messages import Message, reasoning_of

Tools = list[dict[str, Any]] | None

_WORD = "qzv{:07d}vzq"
"""Stands in the place of a text; no template has it."""
_WORDS = re.compile(_WORD.format(0).replace("0000000", r"\d{7}"))


@dataclass(frozen=True, slots=True)
class Piece:
    """A text of the conversation: a message's content, a call, or the name of a tool."""

    message: int | None
    """None for a tool."""
    entry: int | None
    """Which of the calls or tools; None for the content."""
    word: str

    def named(self, messages: list[Message], places: Sequence[int]) -> str:
        """What a person calls it; `places` are the indices that the data give to messages."""
        if self.message is None:
            return f"tools[{self.entry}]"
        role, place = messages[self.message]["role"], places[self.message]
        if self.entry is None:
            return f"messages[{place}] (role {role!r})"
        return f"tool_calls[{self.entry}] of messages[{place}] (role {role!r})"


def omission(
    messages: list[Message], tools: Tools, text: str, render: Callable[[list[Message], Tools], str]
) -> Piece | None:
    """Something that is not in `text`, the rendering of the conversation.

    Not looked for are white space, and what templates drop on purpose of earlier answers: their
    reasoning, and what was said beside a call of a tool, which counts as that.
    """
    pieces = _pieces(messages, tools)
    if not pieces:
        return None
    try:
        shown = set(_WORDS.findall(render(*_with_words(messages, tools, pieces))))
    except InputError:
        shown = set()
    for piece in pieces:
        if piece.word in shown:
            continue
        # Perhaps a word in its place is written otherwise, as in capitals: one for itself tells.
        try:
            other = render(*_with_words(messages, tools, [piece]))
        except InputError:
            continue
        if other == text:
            return piece
    return None


def cut_from_answer(messages: list[Message], text: str) -> str | None:
    """What is missing in the rendering of an answer that comes last, or a part of it.

    Nothing of it may be dropped: it is what the target writes.
    """
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        return None
    shown = "".join(text.split())
    for what, value in (("reasoning", reasoning_of(last)), ("content", last["content"])):
        if "".join(value.split()) not in shown:
            return f"the {what} of messages[{len(messages) - 1}]"
    return None


def _pieces(messages: list[Message], tools: Tools) -> list[Piece]:
    # The tools first: what is said of them is true of every form of the messages.
    places: list[tuple[int | None, int | None]] = [(None, at) for at in range(len(tools or []))]
    for at, message in enumerate(messages):
        calls = message.get("tool_calls") or []
        is_aside = message["role"] == "assistant" and calls and at + 1 < len(messages)
        if (message.get("content") or "").strip() and not is_aside:
            places.append((at, None))
        places += [(at, entry) for entry in range(len(calls))]
    return [Piece(*place, _WORD.format(number)) for number, place in enumerate(places)]


def _with_words(
    messages: list[Message], tools: Tools, pieces: Collection[Piece]
) -> tuple[list[Message], Tools]:
    """The conversation with these pieces replaced."""
    messages, tools = list(messages), None if tools is None else list(tools)
    for piece in pieces:
        if piece.message is None:
            assert tools is not None
            assert piece.entry is not None
            tools[piece.entry] = _renamed(tools[piece.entry], piece.word)
        elif piece.entry is None:
            messages[piece.message] = {**messages[piece.message], "content": piece.word}
        else:
            calls = list(messages[piece.message]["tool_calls"])
            arguments = {"arguments": {piece.word: piece.word}}
            calls[piece.entry] = _renamed(calls[piece.entry], piece.word, arguments)
            messages[piece.message] = {**messages[piece.message], "tool_calls": calls}
    return messages, tools


def _renamed(
    entry: dict[str, Any], name: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A tool, or a call of one, of another name."""
    changed = {"name": name, **(more or {})}
    if isinstance(function := entry.get("function"), dict):
        return {**entry, "function": {**function, **changed}}
    return {**entry, **changed}
