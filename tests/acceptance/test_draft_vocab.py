"""The draft vocabulary: which tokens, and the two tensors that describe it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.stages.acceptance.draft_vocab import VocabMap, choose_vocab
from specpipe.stages.storage.vocab import VocabStatistics

STATISTICS = VocabStatistics(
    count_V=np.array([0, 5, 1, 5, 9, 0, 5]),
    mass_V=np.array([0.5, 0.25, 4.0, 3.0, 0.25, 0.0, 2.0]),
)


def test_by_mass_and_by_count() -> None:
    assert choose_vocab(STATISTICS, 3, "mass").target_ids_D.tolist() == [2, 3, 6]
    # 1, 3 and 6 tie behind 4: the smaller ids win.
    assert choose_vocab(STATISTICS, 3, "count").target_ids_D.tolist() == [1, 3, 4]
    # 1 and 4 tie by mass.
    assert choose_vocab(STATISTICS, 5, "mass").target_ids_D.tolist() == [0, 1, 2, 3, 6]


def test_mass_maximises_what_can_be_accepted() -> None:
    rng = np.random.default_rng(0)
    statistics = VocabStatistics(rng.integers(0, 9, 50), rng.random(50))
    chosen = choose_vocab(statistics, 20, "mass").target_ids_D.numpy()
    best = np.sort(statistics.mass_V)[-20:].sum()
    assert statistics.mass_V[chosen].sum() == pytest.approx(best)


def test_default_and_largest_size() -> None:
    assert choose_vocab(STATISTICS, None, "mass").size == 7
    whole = choose_vocab(STATISTICS, 7, "count")
    assert whole.target_ids_D.tolist() == list(range(7))
    assert whole.d2t.tolist() == [0] * 7
    large = VocabStatistics(np.zeros(32_001, np.int64), np.zeros(32_001))
    assert choose_vocab(large, None, "mass").size == 32_000
    with pytest.raises(ConfigError, match=r"draft_vocab_size 8 .* 7"):
        choose_vocab(STATISTICS, 8, "mass")


@given(st.sets(st.integers(0, 40), min_size=1))
def test_tensors_are_offsets_and_round_trip(ids: set[int]) -> None:
    vocab = VocabMap(torch.tensor(sorted(ids)), 41)
    tensors = vocab.tensors()
    assert tensors["d2t"].dtype == torch.int64
    assert tensors["t2d"].dtype == torch.bool
    assert [d + int(offset) for d, offset in enumerate(tensors["d2t"])] == sorted(ids)
    assert [t for t in range(41) if tensors["t2d"][t]] == sorted(ids)
    again = VocabMap.from_tensors(tensors)
    assert torch.equal(again.target_ids_D, vocab.target_ids_D)
    assert again.vocab_size == 41
    draft_ids = vocab.draft_ids()
    for target in range(41):
        want = sorted(ids).index(target) if target in ids else -1
        assert draft_ids[target] == want


@pytest.mark.parametrize(
    ("d2t", "in_draft"),
    [
        ([1, 2, 4], [1, 2, 4]),  # absolute ids instead of offsets
        ([0, 1, 2], [0, 1, 2]),  # the same for the first tokens of the vocabulary
        ([3, 1, 0], [2, 3]),  # not ascending
        ([1, 0, 2], [1, 4]),  # one target twice
        ([1, 1, 4], [1, 2, 6]),  # outside
        ([-1, 1, 1], [0, 2, 3]),  # below
        ([1, 1, 2], [1, 2, 3]),  # t2d of another map
        ([1, 1, 2], [1, 2, 4, 5]),
        ([0, 0, 0], []),
    ],
)
def test_inconsistent_maps_are_refused(d2t: list[int], in_draft: list[int]) -> None:
    t2d = torch.zeros(6, dtype=torch.bool)
    t2d[[t for t in in_draft if t < 6]] = True
    with pytest.raises(IntegrityError, match="d2t"):
        VocabMap.from_tensors({"d2t": torch.tensor(d2t), "t2d": t2d})
