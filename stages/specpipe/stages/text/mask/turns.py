"""Which characters of a rendered conversation the assistant wrote, found by rendering alone.

An assistant turn is what the conversation up to and with it has beyond the conversation before it
with a generation prompt: what an engine is given, and what it has to write. Nothing is searched
for by its looks, so any template will do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from specpipe.schemas.errors import InputError
from specpipe.stages.text.chat.messages import Message
from specpipe.stages.text.mask.tokens import Span, TextTokens
from specpipe.stages.text.mask.turn_end_tokens import TurnEndTokens


class Render(Protocol):
    def __call__(self, messages: list[Message], *, add_generation_prompt: bool) -> str:
        """Raises InputError where the template refuses the messages."""


@dataclass(frozen=True, slots=True)
class TurnFinder:
    """Finds the turns of a conversation in what its template renders."""

    render: Render
    tokenize: Callable[[str], TextTokens]
    turn_ends: TurnEndTokens

    def find(self, messages: list[Message], tokens: TextTokens) -> list[Span | None]:
        """The characters of each assistant turn in the whole conversation, rendered as `tokens`.

        None for a turn that the template writes otherwise than it would have been generated.
        """
        spans: list[Span | None] = []
        after = 0
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            span = self._turn(messages, at, tokens, after)
            if span is not None:
                after = span[1]
                span = self.turn_ends.trimmed(tokens, self.turn_ends.extended(tokens, span))
            spans.append(span)
        return spans

    def generated(
        self, messages: list[Message], tokens: TextTokens, marked: list[Span]
    ) -> list[Span]:
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
            spans.append(
                self.turn_ends.trimmed(tokens, self.turn_ends.extended(tokens, (start, stop)))
            )
        return spans

    def _headers(self, before: list[Message]) -> list[str]:
        """The generation prompt after `before`, whole and as far as answers have it.

        Where it begins the reasoning, an answer may have that while it is the last one alone.
        """
        try:
            bare = self.render(before, add_generation_prompt=False)
            prompt = self.render(before, add_generation_prompt=True)
            texts = [prompt, _alike([prompt, *self._answers(before, [])])]
        except InputError:
            return [""]
        try:
            earlier = self._answers(before, [{"role": "user", "content": "0"}])
            texts.append(_alike([prompt, *earlier]))
        except InputError:
            pass  # no such conversation: there are no earlier answers either
        return [text[len(bare) :] if text.startswith(bare) else "" for text in texts]

    def _turn(
        self, messages: list[Message], at: int, tokens: TextTokens, after: int
    ) -> Span | None:
        is_last = at + 1 == len(messages)
        try:
            prompt = self.render(messages[:at], add_generation_prompt=True)
            upto = tokens.text
            if not is_last:
                upto = self.render(messages[: at + 1], add_generation_prompt=False)
            cut = self._start(upto, prompt, messages[:at])
            if cut is None:
                return None
            start: int | None = cut
            if not is_last:
                start = len(prompt)
                if not tokens.text.startswith(prompt):
                    start = self._place(messages, at, tokens.text, (prompt, upto[cut:]), after)
        except InputError:
            return None
        if start is None:
            return None
        length = self._length(upto[cut:], start, tokens)
        if not (length or is_last):
            length = self._shortened(messages, at, tokens, (start, upto[cut:]))
        return (start, start + length) if length else None

    def _start(self, text: str, prompt: str, before: list[Message]) -> int | None:
        """Where the answer to `prompt`, with which `text` ends, begins in it.

        A prompt may end in what only an answer to it has (`<think>`): then what it shares with
        every answer counts.
        """
        if text.startswith(prompt):
            return len(prompt)
        bare = self.render(before, add_generation_prompt=False)
        shared = _alike([prompt, *self._answers(before, [])])
        is_header = shared.startswith(bare) and len(shared) > len(bare)
        return len(shared) if is_header and text.startswith(shared) else None

    def _answers(self, before: list[Message], following: list[Message]) -> list[str]:
        """The conversation with two answers in the same place that have nothing in common."""
        return [
            self.render(
                [*before, {"role": "assistant", "content": content}, *following],
                add_generation_prompt=False,
            )
            for content in ("0", "1")
        ]

    def _another(self, messages: list[Message], at: int) -> str:
        """The conversation with another answer, which neither begins nor ends as this one does."""
        content = (messages[at].get("content") or "").strip()
        other = next(digit for digit in "012" if digit not in (content[:1], content[-1:]))
        answer = {"role": "assistant", "content": other}
        return self.render(
            [*messages[:at], answer, *messages[at + 1 :]], add_generation_prompt=False
        )

    def _place(
        self, messages: list[Message], at: int, whole: str, turn_of: tuple[str, str], after: int
    ) -> int | None:
        """Where an earlier turn begins, when the template writes what is before it otherwise.

        `turn_of` are its prompt, and its text when it comes last. A system prompt may stand in the
        last question only, and earlier answers lose what begins their reasoning, in the header
        too. Another answer in its place tells where the turn is: up to there, the texts are alike.
        """
        prompt, turn = turn_of
        own = len(_alike([whole, self._another(messages, at)]))
        if own == len(whole):
            return None
        bare = self.render(messages[:at], add_generation_prompt=False)
        header = prompt[len(bare) :] if prompt.startswith(bare) else ""
        if not header:
            place = whole.rfind(turn, after, own + len(turn))
            return place if 0 <= place <= own < place + len(turn) else None
        begin = whole.rfind(self._beginning(header), after, own)
        if begin < 0:
            return None
        return min(begin + len(_alike([header, whole[begin:own]])), own)

    def _beginning(self, header: str) -> str:
        """The header up to its first special token, by which it is known; without one, all."""
        tokens = self.tokenize(header)
        special = next(
            (at for at, i in enumerate(tokens.ids) if self.turn_ends.is_special(i)), None
        )
        return header if special is None else header[: tokens.stop_T[special]]

    def _shortened(
        self, messages: list[Message], at: int, tokens: TextTokens, last: tuple[int, str]
    ) -> int:
        """How many characters an earlier turn has of which the template drops something within.

        `last` is where the turn begins, and its text when it comes last. 0 where its content is
        not there or no stop follows it: another answer in its place tells where it ends.
        """
        start, turn = last
        try:
            other = self._another(messages, at)
        except InputError:
            return 0
        stop = len(tokens.text) - _alike_at_end([tokens.text, other])
        if not self.turn_ends.stops.intersection(tokens.ids_from(stop)[:1]):
            return 0
        text = tokens.text[start:stop]
        head, tail = len(_alike([text, turn])), _alike_at_end([text, turn])
        content = "".join((messages[at].get("content") or "").split())
        is_there = content in "".join(text[len(text) - tail :].split())
        return len(text) if head + tail >= len(text) and is_there else 0

    def _length(self, turn: str, start: int, tokens: TextTokens) -> int:
        """How many characters of `tokens` from `start` are the turn; 0 if it is not there.

        A template may drop the beginning of an earlier turn (its reasoning), and may end the last
        turn with something of its own, in addition (an end of text) or instead.
        """
        rest = tokens.text[start:]
        if rest.startswith(turn):
            return len(turn)
        alone = self.tokenize(turn)
        closing = self.turn_ends.closing(alone, range(len(alone.ids)))
        specials = [at for at in closing if self.turn_ends.is_special(alone.ids[at])]
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
        is_ended = any(map(self.turn_ends.is_special, tokens.ids_from(start + length)[:1]))
        return length if is_ended and length > len(text) - written else 0


def _alike_at_end(texts: list[str]) -> int:
    """How many characters the texts have in common at their ends."""
    return len(_alike([text[::-1] for text in texts]))


def _alike(texts: list[str]) -> str:
    """The longest text with which all begin."""
    first, low, high = texts[0], 0, min(map(len, texts))
    while low < high:
        middle = (low + high + 1) // 2
        if all(text[low:middle] == first[low:middle] for text in texts):
            low = middle
        else:
            high = middle - 1
    return first[:low]


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
