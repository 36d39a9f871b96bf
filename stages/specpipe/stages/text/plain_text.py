"""Text without a chat template -> tokens and loss mask, by the target's tokenizer.

Legend: T tokens.
"""

from itertools import takewhile
from typing import Any

import numpy as np

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import Sample, Source, make_sample
from specpipe.stages.target.files.tokenizer import encode
from specpipe.stages.text.chat.row import COMPLETION, PROMPT
from specpipe.stages.text.mask.tokens import check_length, longest_beginning

TEXT = "text"

_LONGEST_START = 3
"""Special tokens that a tokenizer puts before a text, at most."""


def text_sample(
    row: dict[str, Any],
    source: Source,
    tokenizer: Any,
    vocab_size: int,
    most_tokens: int | None = None,
) -> Sample:
    """A plain text with the tokenizer's usual special tokens, supervised but for the first.

    Of a text that is too long to be tokenised as a whole, it holds more than the `most_tokens` that
    are wanted of it.
    """
    text = _string(row, TEXT, source)
    beginning = longest_beginning(text)
    ids = plain_ids(beginning, tokenizer)
    if beginning != text and (most_tokens is None or len(ids) <= most_tokens):
        check_length(text, f"{source}: ")
    mask_T = np.ones(len(ids), np.uint8)
    mask_T[:1] = 0
    return make_sample(ids, mask_T, source, vocab_size)


def completion_sample(
    row: dict[str, Any], source: Source, tokenizer: Any, vocab_size: int
) -> Sample:
    """A prompt and its completion, of which the completion is supervised and its end.

    An engine ends a completion by the end of sequence, which is added where it is not there. A
    token across the boundary belongs to the completion.
    """
    prompt = _string(row, PROMPT, source)
    if row.get(COMPLETION) is None:
        raise InputError(
            f"{source}: {PROMPT!r} is there without {COMPLETION!r}; `specpipe dump --generate` "
            "lets the target write it"
        )
    completion = _string(row, COMPLETION, source)
    if not completion:
        raise InputError(f"{source}: {COMPLETION!r} is empty")
    check_length(prompt + completion, f"{source}: ")
    ids = plain_ids(prompt + completion, tokenizer)
    before = open_ids(prompt, tokenizer)
    end = tokenizer.eos_token_id
    if ids[-2:] == [end, end]:  # one is the text's own, the other its tokenizer's
        ids = ids[:-1]
    elif end is not None and ids[-1:] != [end]:
        ids = [*ids, end]
    is_alike = (left == right for left, right in zip(before, ids, strict=False))
    num_alike = sum(1 for _ in takewhile(bool, is_alike))
    mask_T = np.arange(len(ids)) >= num_alike
    return make_sample(ids, mask_T, source, vocab_size)


def prompt_ids(row: dict[str, Any], field: str, source: Source, tokenizer: Any) -> list[int]:
    """The tokens of a text that the target is to go on from."""
    text = _string(row, field, source)
    check_length(text, f"{source}: ")
    return open_ids(text, tokenizer)


def open_ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text that goes on: without an end of sequence that the tokenizer adds."""
    ids = plain_ids(text, tokenizer)
    is_ended = ids[-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if is_ended and _bare_ids(text, tokenizer)[-1:] != ids[-1:] else ids


def plain_ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text with the tokenizer's usual special tokens around it.

    What it puts in front is left out where the text begins with it already: a text that has its
    BOS would get a second one, which no engine's prompt has.
    """
    ids: list[int] = encode(tokenizer, text)["input_ids"]
    for num_before in range(1, _LONGEST_START + 1):
        if ids[:num_before] == ids[num_before : 2 * num_before]:
            bare = _bare_ids(text, tokenizer)
            is_twice = ids[num_before : num_before + len(bare)] == bare
            return ids[num_before:] if is_twice else ids
    return ids


def _bare_ids(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = encode(tokenizer, text, add_special_tokens=False)["input_ids"]
    return ids


def _string(row: dict[str, Any], field: str, source: Source) -> str:
    text = row[field]
    if not isinstance(text, str):
        raise InputError(f"{source}: {field!r} must be a string")
    return text
