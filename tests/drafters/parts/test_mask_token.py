"""The token of drafts that are not there yet: one that the target does not write."""

import numpy as np
import pytest

from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.parts.mask_token import mask_token
from specpipe.stages.storage.vocab import VocabStatistics


def statistics(count: list[int], mass: list[float]) -> VocabStatistics:
    return VocabStatistics(np.array(count, np.int64), np.array(mass))


def test_the_least_probable_unused_token_is_taken_and_of_several_the_last() -> None:
    assert mask_token(statistics([3, 0, 0, 1, 0], [3, 0.2, 0.1, 0.0, 0.1]), None) == 4
    assert mask_token(statistics([3, 0, 0, 1, 0], [3, 0.2, 0.1, 0.0, 0.1]), 1) == 1


@pytest.mark.parametrize(
    ("count", "given", "why"),
    [([1, 2], None, "each of the 2 tokens"), ([0, 2], 1, "2 times"), ([0, 2], 2, "0..1")],
)
def test_a_token_that_the_target_writes_is_refused(
    count: list[int], given: int | None, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        mask_token(statistics(count, [1.0, 1.0]), given)
