"""Starts, verifier rows and validity of a batch against a loop over their definition."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.stages.samples.batch import DrafterSample, make_batch, supervised_spans
from tests.acceptance.reference import is_valid, verifier_row
from tests.drafters.toys import H, L, V, random_samples

LM_HEAD_VH = torch.randn(V, H, generator=torch.Generator().manual_seed(4))
MASKS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(masks=MASKS, num_heads=st.integers(1, 7))
def test_starts_and_rows_follow_the_definition(masks: list[list[int]], num_heads: int) -> None:
    samples = random_samples(masks, LM_HEAD_VH)
    batch = make_batch(samples, num_heads)
    starts, weights, emitted, columns = [], [], [], []
    tokens: list[int] = []
    positions: list[int] = []
    next_tokens: list[int] = []
    row_weights: list[float] = []
    token_at = row_at = 0
    for sample, mask in zip(samples, masks, strict=True):
        ids = sample.input_ids.tolist()
        for i in range(len(mask)):
            if is_valid(mask, i, 1):
                starts.append(token_at + i)
                weights.append(sample.weight)
                emitted.append(mask[i + 1] == 1)
                columns.append(
                    [
                        row_at + verifier_row(mask, i + k) if is_valid(mask, i, k) else -1
                        for k in range(1, num_heads + 1)
                    ]
                )
        followers = [ids[j + 1] for j in range(len(mask) - 1) if mask[j + 1]]
        tokens += ids
        positions += range(len(mask))
        next_tokens += followers
        row_weights += [sample.weight] * len(followers)
        token_at += len(mask)
        row_at += len(followers)

    assert batch.input_ids_T.tolist() == tokens
    assert batch.positions_T.tolist() == positions
    assert batch.next_token_S.tolist() == next_tokens
    assert batch.row_weights_S.tolist() == row_weights
    assert batch.starts_N.tolist() == starts
    assert batch.weights_N.tolist() == weights
    assert batch.emitted_N.tolist() == emitted
    assert batch.rows_KN.T.tolist() == columns
    assert batch.num_heads == num_heads
    assert batch.final_SH is not None
    assert len(batch.final_SH) == len(batch.logz_S) == len(batch.argmax_S) == row_at
    assert batch.aux_TLH.shape == (token_at, L, H)

    used_KN = batch.rows_KN >= 0
    assert bool((used_KN[1:] <= used_KN[:-1]).all()), "a chain has a hole"
    for k in range(num_heads):
        rows = batch.rows_KN[k][used_KN[k]].tolist()
        assert len(rows) == len(set(rows)), "two starts of one head share a target"
    # Head k at start i and head k-1 at start i+1 are held to the same row.
    for n, start in enumerate(starts):
        for k in range(2, num_heads + 1):
            if used_KN[k - 1, n]:
                after = starts.index(start + 1)
                assert batch.rows_KN[k - 2, after] == batch.rows_KN[k - 1, n]
    # Each row's prediction is the token that stands k + 1 after the start.
    for n, start in enumerate(starts):
        for k in range(1, num_heads + 1):
            if used_KN[k - 1, n]:
                assert next_tokens[int(batch.rows_KN[k - 1, n])] == tokens[start + k + 1]


@settings(max_examples=100, deadline=None)
@given(masks=MASKS)
def test_spans_cover_the_starts_in_order(masks: list[list[int]]) -> None:
    batch = make_batch(random_samples(masks, LM_HEAD_VH), 2)
    in_spans = [at for span in batch.spans for at in range(span.begin, span.end)]
    assert in_spans == batch.starts_N.tolist()
    begins = np.cumsum([0, *map(len, masks)]).tolist()
    for span in batch.spans:
        sample = max(at for at in begins if at <= span.begin)
        assert span.sample == sample
        assert span.end <= begins[begins.index(sample) + 1]


@settings(max_examples=100, deadline=None)
@given(mask=st.lists(st.integers(0, 1), min_size=1, max_size=20))
def test_supervised_spans(mask: list[int]) -> None:
    array = np.array(mask, dtype=np.uint8)
    spans = supervised_spans(array)
    assert array.tolist() == mask, "the mask was written to"
    covered = [j for begin, end in spans for j in range(begin, end)]
    assert covered == [j for j, m in enumerate(mask) if m and j > 0]
    assert all(begin < end for begin, end in spans)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans)), "a run was split"


def test_worked_example() -> None:
    # tokens:   0  1  2  3  4  5  6
    # mask:     0  0  1  1  1  0  1
    [sample] = random_samples([[0, 0, 1, 1, 1, 0, 1]], LM_HEAD_VH)
    batch = make_batch([sample], 3)
    # Verifier rows: positions 1, 2, 3 (tokens 2, 3, 4) and 5 (token 6).
    assert batch.starts_N.tolist() == [0, 1, 2, 4]
    assert batch.emitted_N.tolist() == [False, True, True, False]
    assert batch.rows_KN.tolist() == [[0, 1, 2, 3], [1, 2, -1, -1], [2, -1, -1, -1]]


def test_states_keep_their_bits() -> None:
    samples = random_samples([[0, 1, 1], [0, 0, 1, 1]], LM_HEAD_VH)
    batch = make_batch(samples, 1)
    bits = batch.aux_TLH.view(torch.uint16).numpy()
    assert np.array_equal(bits, np.concatenate([s.states.aux_TLH for s in samples]))
    assert batch.final_SH is not None
    bits = batch.final_SH.view(torch.uint16).numpy()
    assert np.array_equal(bits, np.concatenate([s.states.final_SH for s in samples]))
    assert batch.aux_TLH.dtype == batch.final_SH.dtype == torch.bfloat16


def test_moving_a_batch_keeps_everything() -> None:
    batch = make_batch(random_samples([[0, 1, 1, 1]], LM_HEAD_VH), 2)
    moved = batch.to(torch.device("cpu"))
    for name in batch.__slots__:
        here, there = getattr(batch, name), getattr(moved, name)
        same = torch.equal(here, there) if isinstance(here, torch.Tensor) else here == there
        assert same, name


@pytest.mark.parametrize("mask", [[1], [0], [0, 1], [1, 1], [1, 0, 0]])
def test_samples_without_a_start(mask: list[int]) -> None:
    samples: list[DrafterSample] = random_samples([mask], LM_HEAD_VH)
    batch = make_batch(samples, 3)
    assert batch.rows_KN.shape == (3, 0)
    assert batch.spans == ()
    assert len(batch.next_token_S) == sum(mask[1:])
