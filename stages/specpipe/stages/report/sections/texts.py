"""Section: samples as text, their drafts accepted and rejected."""

from collections.abc import Sequence

from specpipe.stages.report.blocks import Block, Missing, Piece, Section, Text, Texts
from specpipe.stages.report.drafted import DraftedSample, Ids
from specpipe.stages.report.rounds_of_text import rounds_of
from specpipe.stages.report.token_text import Tokenizer, token_texts

MOST_PROMPT_TOKENS = 80
MOST_TOKENS = 260
"""Of a sample's answer; a page is not a listing."""

NEWLINE, TAB, NO_TEXT = (
    "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
    "\N{RIGHTWARDS ARROW TO BAR}",
    "\N{MIDDLE DOT}",
)


def texts_section(
    samples: Sequence[DraftedSample], tokenizer: Tokenizer | None, num_heads: int, because: str
) -> Section:
    """The samples round by round; `because` says why there are none."""
    lead = (
        f"Held-out text, drafted greedily with {num_heads} draft tokens, as vLLM does by default."
        " A thin line opens each round."
    )
    if not samples:
        return Section("texts", "Texts, round by round", lead, [Missing(because)])
    blocks: list[Block] = [
        Texts([_text(n, sample, tokenizer) for n, sample in enumerate(samples, start=1)])
    ]
    if tokenizer is None:
        blocks.append(Missing("The dump holds no tokenizer: token ids stand for their text."))
    return Section("texts", "Texts, round by round", lead, blocks)


def _text(number: int, sample: DraftedSample, tokenizer: Tokenizer | None) -> Text:
    ids = sample.input_ids_T
    words = _Words(ids, tokenizer)
    rounds: list[list[Piece]] = []
    num_rounds = num_drafted = 0
    at, last = 0, _last_shown(sample)
    for span in sample.spans:
        if span.begin >= last:
            break
        rounds.append([("prompt", words.prompt(at, span.begin))])
        rounds.append([("own", words.token(span.begin))])
        for round_ in rounds_of(span, ids):
            num_rounds += 1
            num_drafted += round_.end - round_.begin
            if round_.begin < last:
                accepted = round_.begin + round_.num_accepted
                pieces = [("accepted", words.token(t)) for t in range(round_.begin, accepted)]
                if round_.rejected is not None:
                    pieces.append(("rejected", words.alone(round_.rejected)))
                pieces += [("own", words.token(t)) for t in range(accepted, round_.end)]
                rounds.append(pieces)
        at = span.end
    caption = f"{num_drafted:,} tokens in {num_rounds:,} rounds"
    if num_rounds:
        caption += f": {num_drafted / num_rounds:.2f} tokens per round"
    return Text(f"Sample {number}", caption, rounds, max(0, len(ids) - last))


def _last_shown(sample: DraftedSample) -> int:
    """The first token that is not shown any more."""
    first = sample.spans[0].begin if sample.spans else 0
    return min(len(sample.input_ids_T), first + MOST_TOKENS)


class _Words:
    """Tokens as text in which whitespace can be seen, or their ids without a tokenizer."""

    def __init__(self, ids: Ids, tokenizer: Tokenizer | None) -> None:
        self._ids = ids.tolist()
        self._tokenizer = tokenizer
        self._texts = None if tokenizer is None else token_texts(self._ids, tokenizer)

    def token(self, at: int) -> str:
        return _seen(f"{self._ids[at]} " if self._texts is None else self._texts[at])

    def alone(self, token: int) -> str:
        """A token that does not stand in the text."""
        text = f"{token} "
        if self._tokenizer is not None:
            text = self._tokenizer.decode([token], skip_special_tokens=False)
        return _seen(text).replace(f"{NEWLINE}\n", NEWLINE)

    def prompt(self, begin: int, end: int) -> str:
        """The tokens before a decode, of a long prompt the last."""
        start = max(begin, end - MOST_PROMPT_TOKENS)
        texts = map(str, self._ids) if self._texts is None else iter(self._texts)
        joined = ("" if self._texts else " ").join(list(texts)[start:end])
        return ("... " if start > begin else "") + joined


def _seen(text: str) -> str:
    return (text or NO_TEXT).replace("\n", f"{NEWLINE}\n").replace("\t", TAB)
