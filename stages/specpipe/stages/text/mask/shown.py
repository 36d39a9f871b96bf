"""A sample as text in which a person sees what is supervised."""

from collections.abc import Callable
from itertools import groupby, islice

from specpipe.schemas.records.sample import Ids, Mask

MOST_TOKENS_SHOWN = 400

Pieces = tuple[tuple[str, bool], ...]
"""Consecutive pieces of a text, with whether they are supervised."""

Decode = Callable[[list[int]], str]


def masked_text(
    input_ids: Ids, loss_mask: Mask, decode: Decode | None, most_tokens: int = MOST_TOKENS_SHOWN
) -> Pieces:
    """The pieces of a sample, up to `most_tokens`; token ids where there is no `decode`."""
    tokens = zip(input_ids.tolist(), loss_mask.tolist(), strict=True)
    pieces = []
    for supervised, run in groupby(islice(tokens, most_tokens), key=lambda token: token[1]):
        ids = [token_id for token_id, _ in run]
        text = " ".join(map(str, ids)) + " " if decode is None else decode(ids)
        pieces.append((text, bool(supervised)))
    if len(input_ids) > most_tokens:
        pieces.append((f" ... and {len(input_ids) - most_tokens} tokens more", False))
    return tuple(pieces)
