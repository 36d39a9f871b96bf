"""Samples into batches of a forward pass."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from specpipe.schemas.sample import Ids


class Tokens(Protocol):
    @property
    def input_ids(self) -> Ids: ...


SomeTokens = TypeVar("SomeTokens", bound=Tokens)


def batches(samples: Sequence[SomeTokens], batch_tokens: int) -> Iterator[list[SomeTokens]]:
    """Consecutive samples whose tokens, padded to the longest, are at most `batch_tokens`.

    A sample that is longer has a batch of its own.
    """
    batch: list[SomeTokens] = []
    longest = 0
    for sample in samples:
        longest = max(longest, len(sample.input_ids))
        if batch and (len(batch) + 1) * longest > batch_tokens:
            yield batch
            batch, longest = [], len(sample.input_ids)
        batch.append(sample)
    if batch:
        yield batch
