"""Which characters of a rendered conversation the assistant wrote, found by rendering alone.

An assistant turn is what the conversation up to and with it has beyond the conversation before it
with a generation prompt: what an engine is given, and what it has to write. Nothing is searched
for by its looks, so any template will do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from specpipe.schemas.errors import InputError
from specpipe.stages.dump.messages import Message
from specpipe.stages.dump.tokens import Span, Tokens


class Render(Protocol):
    def __call__(self, messages: list[Message], *, add_generation_prompt: bool) -> str:
        """Raises InputError where the template refuses the messages."""


@dataclass(frozen=True, slots=True)
class TurnFinder:
    """Finds the turns of a conversation in what its template renders."""

    render: Render
    tokenize: Callable[[str], Tokens]
    special: frozenset[int]
    """Ids of the special tokens."""
    stops: frozenset[int]
    """Ids of the tokens at which an engine stops."""

    def find(self, messages: list[Message], tokens: Tokens) -> list[Span | None]:
        """The characters of each assistant turn in the whole conversation, rendered as `tokens`.

        None for a turn that the template writes otherwise than it would have been generated.
        """
        found = [
            self._turn(messages, at, tokens.text)
            for at, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        return [None if span is None else self._trimmed(tokens, span) for span in found]

    def _trimmed(self, tokens: Tokens, span: Span) -> Span:
        """The span up to the token at which an engine stops.

        What the template writes after it (a new line) is no output. Where none of the closing
        tokens is known to stop an engine, it is the last special one.
        """
        closing = tokens.closing(self.special, tokens.within(span))
        stops = [at for at in closing if tokens.ids[at] in self.stops]
        specials = [at for at in closing if tokens.ids[at] in self.special]
        last = stops[:1] or specials[-1:]
        return (span[0], int(tokens.stop_T[last[0]])) if last else span

    def _turn(self, messages: list[Message], at: int, whole: str) -> Span | None:
        try:
            bare = self.render(messages[:at], add_generation_prompt=False)
            prompt = self.render(messages[:at], add_generation_prompt=True)
            upto = whole
            if at + 1 < len(messages):
                upto = self.render(messages[: at + 1], add_generation_prompt=False)
        except InputError:
            return None
        start, start_upto = (self._start(text, bare, prompt) for text in (whole, upto))
        if start is None or start_upto is None:
            return None
        length = self._length(upto[start_upto:], whole[start:])
        return (start, start + length) if length else None

    def _start(self, text: str, bare: str, prompt: str) -> int | None:
        """Where the answer to `prompt` begins in `text`.

        A prompt may end in what only an answer to it has (`<think>`): then what they share counts.
        """
        if text.startswith(prompt):
            return len(prompt)
        if not (text.startswith(bare) and prompt.startswith(bare)):
            return None
        header = prompt[len(bare) :]
        cuts = [int(stop) for stop in self.tokenize(header).stop_T]
        shared = [cut for cut in cuts if text.startswith(header[:cut], len(bare))]
        return len(bare) + shared[-1] if shared else None

    def _length(self, turn: str, rest: str) -> int:
        """How much of `rest` is the turn; 0 if it does not begin with the turn.

        A template may drop the beginning of an earlier turn (its reasoning), and may end only the
        last turn with something of its own (an end of text).
        """
        if rest.startswith(turn):
            return len(turn)
        tokens = self.tokenize(turn)
        closing = tokens.closing(self.special, range(len(tokens.ids)))
        written = int(tokens.stop_T[closing.start - 1]) if closing.start else 0
        # With a special token at its end, whatever is found ends where the turn does.
        while any(tokens.ids[at] in self.special for at in closing):
            text = turn[: tokens.stop_T[closing.stop - 1]]
            length = _overlap(text, rest)
            if length > len(text) - written:
                return length
            closing = range(closing.start, closing.stop - 1)
        return 0


def _overlap(text: str, rest: str) -> int:
    """Length of the longest end of `text` that `rest` begins with."""
    at = text.find(rest[:1]) if rest else -1
    while at >= 0:
        if rest.startswith(text[at:]):
            return len(text) - at
        at = text.find(rest[0], at + 1)
    return 0
