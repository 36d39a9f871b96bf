"""Which characters of a rendered conversation the assistant wrote, found by rendering alone.

An assistant turn is what the conversation up to and with it has beyond the conversation before it
with a generation prompt: what an engine is given, and what it has to write. Nothing is searched
for by its looks, so any template will do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from specpipe.schemas.errors import InputError
from specpipe.stages.dump.closers import Closers
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
    closers: Closers

    def find(self, messages: list[Message], tokens: Tokens) -> list[Span | None]:
        """The characters of each assistant turn in the whole conversation, rendered as `tokens`.

        None for a turn that the template writes otherwise than it would have been generated.
        """
        found: list[Span | None] = []
        after: int | None = 0
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            span = self._turn(messages, at, tokens, after)
            found.append(None if span is None else self.closers.trimmed(tokens, span))
            # A turn after one that is lost could be looked for in the place of that one.
            after = None if span is None else span[1]
        return found

    def generated(self, messages: list[Message], tokens: Tokens, marked: list[Span]) -> list[Span]:
        """What an engine writes of the characters that a template marks.

        Markers may take in the generation prompt and what follows the end of a turn, and may
        leave the end itself out.
        """
        first = next((at for at, m in enumerate(messages) if m["role"] == "assistant"), 0)
        headers = self._headers(messages[:first])
        spans = []
        for start, stop in marked:
            before, within = tokens.text[:start], tokens.text[start:stop]
            start += max(_rest_of_header(header, before, within) for header in headers)
            spans.append(self.closers.trimmed(tokens, self.closers.extended(tokens, (start, stop))))
        return spans

    def _headers(self, before: list[Message]) -> tuple[str, str]:
        """The generation prompt after `before`, whole and as far as any answer has it."""
        try:
            bare = self.render(before, add_generation_prompt=False)
            prompt = self.render(before, add_generation_prompt=True)
            shared = self._shared(before, prompt)
        except InputError:
            return "", ""
        if not (prompt.startswith(bare) and shared.startswith(bare)):
            return "", ""
        return prompt[len(bare) :], shared[len(bare) :]

    def _turn(
        self, messages: list[Message], at: int, tokens: Tokens, after: int | None
    ) -> Span | None:
        whole = tokens.text
        try:
            bare = self.render(messages[:at], add_generation_prompt=False)
            prompt = self.render(messages[:at], add_generation_prompt=True)
            upto = whole
            if at + 1 < len(messages):
                upto = self.render(messages[: at + 1], add_generation_prompt=False)
            cut = self._start(upto, bare, prompt, messages[:at])
            start = self._start(whole, bare, prompt, messages[:at])
        except InputError:
            return None
        if cut is None:
            return None
        turn = upto[cut:]
        if start is not None:
            places: Iterator[int] = iter([start])
        elif after is not None and upto.startswith(bare):
            places = self._places(upto[len(bare) : cut], turn, whole, after)
        else:
            return None
        spans = ((place, place + self._length(turn, place, tokens)) for place in places)
        return next((span for span in spans if span[1] > span[0]), None)

    def _start(self, text: str, bare: str, prompt: str, before: list[Message]) -> int | None:
        """Where the answer to `prompt`, which `before` is rendered as, begins in `text`.

        A prompt may end in what only an answer to it has (`<think>`): then what it shares with
        every answer counts.
        """
        if text.startswith(prompt):
            return len(prompt)
        if not (text.startswith(bare) and prompt.startswith(bare)):
            return None
        shared = self._shared(before, prompt)
        return len(shared) if len(shared) > len(bare) and text.startswith(shared) else None

    def _shared(self, before: list[Message], prompt: str) -> str:
        """What the prompt and all answers to it begin with."""
        answers = [
            self.render(
                [*before, {"role": "assistant", "content": content}], add_generation_prompt=False
            )
            for content in ("0", "1")
        ]
        alike = takewhile(
            lambda letters: len(set(letters)) == 1, zip(prompt, *answers, strict=False)
        )
        return prompt[: sum(1 for _ in alike)]

    def _places(self, header: str, turn: str, whole: str, after: int) -> Iterator[int]:
        """Where else the turn may begin, when the template writes what is before it otherwise.

        A system prompt may stand in the last question only, an earlier answer lose its reasoning.
        Only special tokens tell such a place from the same words in another's message.
        """
        if not any(map(self.closers.is_special, self.tokenize(header + turn).ids)):
            return
        sought = header or turn
        at = whole.find(sought, after)
        while at >= 0:
            yield at + len(header)
            at = whole.find(sought, at + 1)

    def _length(self, turn: str, start: int, tokens: Tokens) -> int:
        """How many characters of `tokens` from `start` are the turn; 0 if it is not there.

        A template may drop the beginning of an earlier turn (its reasoning), and may end the last
        turn with something of its own, in addition (an end of text) or instead.
        """
        rest = tokens.text[start:]
        if rest.startswith(turn):
            return len(turn)
        alone = self.tokenize(turn)
        closing = self.closers.closing(alone, range(len(alone.ids)))
        specials = [at for at in closing if self.closers.is_special(alone.ids[at])]
        if not specials:
            return 0
        written = int(alone.start_T[closing.start])
        # With a special token at its end, whatever is found ends where the turn does.
        for stop in range(closing.stop, specials[0], -1):
            text = turn[: alone.stop_T[stop - 1]]
            length = _overlap(text, rest)
            if length > len(text) - written:
                return length
        text = turn[: alone.start_T[specials[0]]]
        length = _overlap(text, rest)
        is_ended = any(map(self.closers.is_special, tokens.ids_from(start + length)[:1]))
        return length if is_ended and length > len(text) - written else 0


def _rest_of_header(header: str, before: str, marked: str) -> int:
    """How many characters at the beginning of `marked` belong to the header."""
    cuts = range(len(header), -1, -1)
    return next(
        (
            len(header) - cut
            for cut in cuts
            if before.endswith(header[:cut]) and marked.startswith(header[cut:])
        ),
        0,
    )


def _overlap(text: str, rest: str) -> int:
    """Length of the longest end of `text` that `rest` begins with."""
    at = text.find(rest[:1]) if rest else -1
    while at >= 0:
        if rest.startswith(text[at:]):
            return len(text) - at
        at = text.find(rest[0], at + 1)
    return 0
