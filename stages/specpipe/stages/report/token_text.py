"""A token's own text, and what kind of token it is.

A single token of a byte-level vocabulary need not be text, and a SentencePiece token loses its
leading space when it is decoded alone: tokens are decoded along with those before them.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

KINDS = (
    "word start",
    "word continuation",
    "digits",
    "punctuation and symbols",
    "whitespace and newlines",
    "part of a character",
    "special",
)

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""


class Tokenizer(Protocol):
    """The methods of transformers' tokenizers that are used here."""

    @property
    def all_special_ids(self) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text that each token adds; empty for one whose character a later token finishes."""
    texts = []
    # The tokens [begin, done) have their texts; they are decoded again for the spaces between.
    begin = done = 0
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(list(ids[begin:done]), skip_special_tokens=False)
        both = tokenizer.decode(list(ids[begin:end]), skip_special_tokens=False)
        if both.endswith(_UNFINISHED) and end - done < 4 and end < len(ids):
            texts.append("")
            continue
        texts.append(both[len(before) :])
        begin, done = done, end
    return texts


def token_kinds(
    ids: Sequence[int], texts: Sequence[str], special_ids: frozenset[int]
) -> npt.NDArray[np.int64]:
    """The kind of each token, as its place in KINDS."""
    kinds = []
    before = ""
    for token, text in zip(ids, texts, strict=True):
        kinds.append(KINDS.index("special" if token in special_ids else _kind(text, before)))
        before = text or before
    return np.array(kinds, dtype=np.int64)


def _kind(text: str, before: str) -> str:
    letters = text.strip()
    if not text or _UNFINISHED in text:
        return "part of a character"
    if not letters:
        return "whitespace and newlines"
    if letters.isdigit():
        return "digits"
    if not any(map(str.isalpha, letters)):
        return "punctuation and symbols"
    goes_on = text[0].isalpha() and before[-1:].isalpha()
    return "word continuation" if goes_on else "word start"
