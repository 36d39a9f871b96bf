"""Samples into batches of a forward pass."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from specpipe.schemas.records.sample import Ids


class Tokens(Protocol):
    @property
    def input_ids(self) -> Ids: ...


SomeTokens = TypeVar("SomeTokens", bound=Tokens)


def _length(sample: Tokens) -> int:
    return len(sample.input_ids)


def batches(
    samples: Sequence[SomeTokens],
    batch_tokens: int,
    length: Callable[[SomeTokens], int] = _length,
) -> Iterator[list[SomeTokens]]:
    """Consecutive samples whose tokens, padded to the longest, are at most `batch_tokens`.

    A sample that is longer has a batch of its own. `length` is a sample's number of tokens.
    """
    batch: list[SomeTokens] = []
    longest = 0
    for sample in samples:
        longest = max(longest, length(sample))
        if batch and (len(batch) + 1) * longest > batch_tokens:
            yield batch
            batch, longest = [], length(sample)
        batch.append(sample)
    if batch:
        yield batch
