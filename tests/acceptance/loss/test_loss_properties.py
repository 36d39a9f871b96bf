"""What must not change the losses, what must not reach them, and how large their tensors get.

Legend: S verifier rows, N starts, K heads, D draft vocabulary, V vocabulary, H hidden size.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.measures import MEASURES
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.samples.batch import Batch, make_batch
from tests.acceptance.loss.loss_rows import (
    ETA,
    LOSSES,
    Outcome,
    close,
    evaluate,
    random_rows,
    rows_batch,
)
from tests.drafters.toys import DRAFT_IDS, H, Largest, V, random_samples, verifier_of


@pytest.mark.parametrize("loss", LOSSES)
def test_invariances(loss: LossName) -> None:
    size, vocab = 9, 7
    target, draft, batch = random_rows(size, vocab)
    base = evaluate(loss, draft, batch, decay=0.8)

    def same(other: Outcome, gradient_KND: Tensor) -> None:
        close(other.value, base.value, 1e-12)
        torch.testing.assert_close(gradient_KND, base.gradient_KND, rtol=0, atol=1e-12)

    def with_target(target_SV: Tensor, tokens_S: list[int]) -> Batch:
        weights = batch.weights_N.tolist()
        return rows_batch(target_SV, tokens_S, batch.rows_KN.tolist(), weights)

    tokens = batch.next_token_S.tolist()
    shifts = torch.arange(size, dtype=torch.float64)[:, None]
    other = evaluate(loss, draft, with_target(target + shifts, tokens), decay=0.8)
    same(other, other.gradient_KND)
    other = evaluate(loss, draft - 3 * shifts, batch, decay=0.8)
    same(other, other.gradient_KND)

    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(5))
    renamed = [order.tolist().index(token) for token in tokens]
    other = evaluate(loss, draft[..., order], with_target(target[:, order], renamed), decay=0.8)
    same(other, other.gradient_KND[..., order.argsort()])

    nothing_SV = torch.full((size, 2), -1e30, dtype=torch.float64)
    nothing_KND = torch.full((2, size, 2), -1e30, dtype=torch.float64)
    wider = with_target(torch.cat([target, nothing_SV], 1), tokens)
    other = evaluate(loss, torch.cat([draft, nothing_KND], -1), wider, decay=0.8)
    same(other, other.gradient_KND[..., :vocab])
    assert not other.gradient_KND[..., vocab:].any()

    twice = rows_batch(
        target.repeat(2, 1),
        tokens * 2,
        torch.cat(
            [batch.rows_KN, torch.where(batch.rows_KN < 0, -1, batch.rows_KN + size)], 1
        ).tolist(),
        batch.weights_N.tolist() * 2,
    )
    other = evaluate(loss, draft.repeat(1, 2, 1), twice, decay=0.8)
    same(other, other.gradient_KND[:, :size] * 2)
    heavier = replace(batch, weights_N=batch.weights_N * 5)
    other = evaluate(loss, draft, heavier, decay=0.8)
    same(other, other.gradient_KND)

    starts = torch.randperm(size, generator=torch.Generator().manual_seed(6))
    shuffled = replace(batch, rows_KN=batch.rows_KN[:, starts], weights_N=batch.weights_N[starts])
    other = evaluate(loss, draft[:, starts], shuffled, decay=0.8)
    same(other, other.gradient_KND[:, starts.argsort()])


@pytest.mark.parametrize("loss", LOSSES)
def test_multiplicity_is_repetition(loss: LossName) -> None:
    target, draft, batch = random_rows(6, 5)
    weighted = evaluate(loss, draft, batch, decay=0.8)
    copies = [n for n in range(6) for _ in range(int(batch.weights_N[n]))]
    # A verifier row serves one start of each head: every copy brings its own rows.
    targets: list[Tensor] = []
    rows: list[list[int]] = [[], []]
    tokens: list[int] = []
    for n in copies:
        for k in range(2):
            row = int(batch.rows_KN[k, n])
            rows[k].append(len(targets) if row >= 0 else -1)
            if row >= 0:
                targets.append(target[row])
                tokens.append(int(batch.next_token_S[row]))
    repeated = rows_batch(torch.stack(targets), tokens, rows)
    other = evaluate(loss, draft[:, copies], repeated, decay=0.8)
    close(other.value, weighted.value, 1e-12)
    summed = torch.zeros_like(weighted.gradient_KND)
    summed.index_add_(1, torch.tensor(copies), other.gradient_KND)
    torch.testing.assert_close(summed, weighted.gradient_KND, rtol=0, atol=1e-12)


def test_lambda_carries_no_gradient_and_is_one_per_head() -> None:
    _, draft, batch = random_rows(12, 6)
    hybrid = evaluate("lk_hybrid", draft, batch, decay=0.8)
    kl, tv = (evaluate(loss, draft, batch, decay=0.8) for loss in ("kl", "tv"))
    weights = batch.weights_N * (batch.rows_KN >= 0)
    alpha_K = (kl.measure("alpha") * weights).sum(1) / weights.sum(1)
    lambda_K = torch.exp(-ETA * alpha_K)
    torch.testing.assert_close(hybrid.lambda_K, lambda_K, rtol=1e-12, atol=0)
    mix = lambda_K[:, None, None]
    torch.testing.assert_close(
        hybrid.gradient_KND,
        mix * kl.gradient_KND + (1 - mix) * tv.gradient_KND,
        rtol=0,
        atol=1e-14,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_an_unused_head_of_a_start_changes_nothing(loss: LossName) -> None:
    """Not even by a NaN: it is not read."""
    _, draft, batch = random_rows(5, 6)
    base = evaluate(loss, draft, batch, decay=0.8)
    spoiled = draft.clone()
    spoiled[1, -1] = torch.nan
    other = evaluate(loss, spoiled, batch, decay=0.8)
    assert other.value == base.value
    assert torch.equal(other.gradient_KND, base.gradient_KND)
    assert torch.equal(other.lambda_K, base.lambda_K)
    assert not base.gradient_KND[1, -1].any()
    assert not base.measures_MKN[:, 1, -1].any()


def test_tokens_outside_the_draft_vocabulary_are_left_out_of_ce_only() -> None:
    _, draft, batch = random_rows(8, 6, seed=2)
    batch = replace(batch, next_token_S=torch.tensor([0, 5, 1, 5, 2, 0, 5, 1]))
    ids = [0, 1, 2, 3]
    inside_KN = (batch.rows_KN >= 0) & (batch.next_token_S != 5)[batch.rows_KN]
    out = evaluate("ce", draft[..., :4], batch, ids)
    logq = torch.log_softmax(draft[..., :4], -1)
    want = 0.0
    for k in range(2):
        used = [n for n in range(8) if inside_KN[k, n]]
        losses = [-logq[k, n, batch.next_token_S[batch.rows_KN[k, n]]] for n in used]
        weights = [float(batch.weights_N[n]) for n in used]
        want += float(sum(w * x for w, x in zip(weights, losses, strict=True))) / sum(weights)
    close(out.value, want, 1e-12)
    assert not out.gradient_KND[~inside_KN].any()
    assert out.gradient_KND[inside_KN].abs().sum(-1).all()
    kl = evaluate("kl", draft[..., :4], batch, ids)
    assert kl.gradient_KND[batch.rows_KN >= 0].abs().sum(-1).all()
    everything_outside = replace(batch, next_token_S=torch.full((8,), 5))
    out = evaluate("ce", draft[..., :4], everything_outside, ids)
    assert out.value == 0
    assert not out.gradient_KND.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: LossName) -> None:
    """Finite differences, in hidden states and lm_head, away from ties q_i = p_i."""
    generator = torch.Generator().manual_seed(8)
    target, _, batch = random_rows(4, 6, seed=3)
    hidden = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(5)
    draft_ids_V = torch.tensor([0, 1, 2, 3, 4, -1])
    verifier = Verifier(lambda final: final[:, :5].clone(), draft_ids_V, ids)
    p = torch.softmax(target, -1)[:, :5]
    q = torch.softmax(hidden @ head.T, -1)
    used = batch.rows_KN >= 0
    assert (q - p[batch.rows_KN]).abs()[used].min() > 1e-4
    loss_settings = LossSettings(
        {loss: 1.0},
        torch.tensor([1.0, 0.8], dtype=torch.float64),
        torch.tensor([0.3, 0.6], dtype=torch.float64) if loss == "lk_hybrid" else None,
    )

    def value(hidden: Tensor, head: Tensor) -> Tensor:
        return HeadLoss(verifier, 3)(hidden, Heads.shared(head), batch, loss_settings)[0]

    assert torch.autograd.gradcheck(value, (hidden, head), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_chunk_size_changes_nothing(loss: LossName) -> None:
    _, draft, batch = random_rows(30, 6)
    whole = evaluate(loss, draft, batch, [0, 2, 3, 4, 5, 1], chunk_rows=10**9)
    for chunk_rows in (1, 7, 30):
        parts = evaluate(loss, draft, batch, [0, 2, 3, 4, 5, 1], chunk_rows=chunk_rows)
        close(parts.value, whole.value, 1e-13)
        torch.testing.assert_close(parts.gradient_KND, whole.gradient_KND, rtol=0, atol=1e-13)
        torch.testing.assert_close(parts.measures_MKN, whole.measures_MKN, rtol=0, atol=1e-13)


def test_upstream_gradient_scales() -> None:
    _, draft, batch = random_rows(5, 6)
    verifier = Verifier(torch.clone, torch.arange(6), torch.arange(6))
    hidden = draft.clone().requires_grad_()
    head = torch.eye(6, dtype=torch.float64, requires_grad=True)
    loss_settings = LossSettings({"kl": 1.0}, torch.ones(2, dtype=torch.float64))
    once = torch.autograd.grad(
        HeadLoss(verifier, 2)(hidden, Heads.shared(head), batch, loss_settings)[0], (hidden, head)
    )
    thrice = torch.autograd.grad(
        HeadLoss(verifier, 2)(hidden, Heads.shared(head), batch, loss_settings)[0] * 3,
        (hidden, head),
    )
    for one, other in zip(once, thrice, strict=True):
        torch.testing.assert_close(one * 3, other)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_larger_than_a_chunk(loss: LossName) -> None:
    """Neither [rows, D] nor [starts, D] ever exists; nor are all verifier logits asked for."""
    draft_ids, chunk_rows, num_heads = list(range(200, 1200)), 16, 3
    lm_head_VH = torch.randn(2000, H, generator=torch.Generator().manual_seed(0))
    [sample] = random_samples([[0] * 5 + [1] * 300], torch.randn(V, H))
    batch = make_batch([sample], num_heads)
    verifier = verifier_of(lm_head_VH, draft_ids)
    asked = []

    def logits(final_RH: Tensor) -> Tensor:
        asked.append(len(final_RH))
        return verifier.logits(final_RH)

    hidden = torch.randn(num_heads, len(batch.starts_N), H, requires_grad=True)
    head = torch.randn(len(draft_ids), H, requires_grad=True)
    lambda_K = torch.full((num_heads,), 0.5) if loss == "lk_hybrid" else None
    loss_settings = LossSettings({loss: 1.0}, torch.ones(num_heads), lambda_K)
    with Largest() as largest:
        value, _ = HeadLoss(replace(verifier, logits=logits), chunk_rows)(
            hidden, Heads.shared(head), batch, loss_settings
        )
        value.backward()
    assert largest.numel <= chunk_rows * len(draft_ids)
    assert max(asked) <= chunk_rows
    assert sum(asked) == len(batch.next_token_S), "verifier logits are computed once for all heads"


def test_measuring_needs_no_gradient() -> None:
    samples = random_samples([[0, 1, 1, 1, 1]], torch.randn(V, H))
    batch = make_batch(samples, 2)
    verifier = verifier_of(torch.randn(V, H), DRAFT_IDS)
    with torch.no_grad():
        hidden, head = torch.randn(2, 3, H), torch.randn(len(DRAFT_IDS), H)
        measures = HeadLoss(verifier, 2).measures(hidden, Heads.shared(head), batch)
    assert measures.shape == (len(MEASURES), 2, 3)
    assert (measures[0, 0] > 0).all()
