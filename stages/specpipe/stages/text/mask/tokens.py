"""A text as the tokenizer's tokens, each with the characters that it stands for.

Legend: T tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import Mask
from specpipe.stages.target.files.tokenizer import encode

LONGEST_TEXT = 2**23
"""Bytes in UTF-8 that are tokenised at a time: tokenizers take up to 500 times as many."""

Span = tuple[int, int]
"""Characters [start, stop) of a text."""


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Token ids, and for each token its characters [start, stop)."""

    text: str
    ids: list[int]
    start_T: npt.NDArray[np.int64]
    stop_T: npt.NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: Any, text: str) -> "TextTokens":
        """Tokenise a rendered text, whose special tokens stand in it. Raises InputError."""
        check_length(text)
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        encoded = encode(tokenizer, text, **options)
        start_T, stop_T = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
        # Some tokenizers leave white space out of a token's characters: it belongs to the next.
        before_T = np.concatenate([[0], stop_T[:-1]]) if len(stop_T) else stop_T
        return cls(text, encoded["input_ids"], np.minimum(start_T, before_T), stop_T)

    def within(self, span: Span) -> range:
        """Indices of the tokens that share a character with the span."""
        touched = np.flatnonzero((self.start_T < span[1]) & (self.stop_T > span[0]))
        return range(int(touched[0]), int(touched[-1]) + 1) if len(touched) else range(0)

    def mask(self, spans: Iterable[Span]) -> Mask:
        """uint8 [T]: 1 for the tokens that share a character with a span."""
        mask_T = np.zeros(len(self.ids), np.uint8)
        for span in spans:
            mask_T[self.within(span)] = 1
        return mask_T

    def text_of(self, at: int) -> str:
        return self.text[self.start_T[at] : self.stop_T[at]]

    def ids_from(self, start: int) -> list[int]:
        """The ids from the token on that begins at this character; none if no token does."""
        at = int(np.searchsorted(self.start_T, start))
        begins = at < len(self.ids) and self.start_T[at] == start
        return self.ids[at:] if begins else []


def check_length(text: str, where: str = "") -> None:
    """Raise InputError for a text that takes too much memory to be tokenised."""
    if is_too_long(text):
        raise InputError(
            f"{where}a text of {len(text.encode())} bytes, more than the {LONGEST_TEXT} that are "
            "tokenised; split it, or tokenise it yourself"
        )


def is_too_long(text: str) -> bool:
    return len(text) > LONGEST_TEXT // 4 and len(text.encode()) > LONGEST_TEXT


def longest_beginning(text: str) -> str:
    """As much of the text as is tokenised at a time."""
    return text.encode()[:LONGEST_TEXT].decode(errors="ignore") if is_too_long(text) else text
