"""The loss on what dumps of every logits mode keep of the verifier.

Legend: S verifier rows, C kept tokens, V vocabulary, D draft vocabulary, H hidden size, K heads,
N starts, M measures.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.measures import MEASURES
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.samples.batch import Batch, DrafterSample, make_batch
from tests.acceptance.loss.loss_rows import LOSSES
from tests.drafters.toys import DRAFT_IDS, H, V, bf16, random_samples, verifier_of

K = 2
LM_HEAD_VH = torch.randn(V, H, generator=torch.Generator().manual_seed(9))
VERIFIER = verifier_of(LM_HEAD_VH, DRAFT_IDS)


def samples(mode: str) -> list[DrafterSample]:
    """The same samples as a dump of the mode `final`, `full` or `topk:C` keeps them."""
    return [_kept(sample, mode) for sample in random_samples([[0, 0] + [1] * 20], LM_HEAD_VH)]


def _kept(sample: DrafterSample, mode: str) -> DrafterSample:
    if mode == "final":
        return sample
    final_SH = torch.from_numpy(sample.states.final_SH).view(torch.bfloat16)
    logp_SV = torch.log_softmax(final_SH.float() @ LM_HEAD_VH.T, -1)
    states = replace(sample.states, final_SH=None)
    if mode == "full":
        return replace(sample, states=replace(states, logits_SV=bf16(logp_SV)))
    kept = logp_SV.topk(int(mode.removeprefix("topk:")), dim=1)
    ids = kept.indices.to(torch.int32).numpy()
    kept_states = replace(states, topk_ids_SK=ids, topk_logits_SK=bf16(kept.values))
    return replace(sample, states=kept_states)


def outcome(batch: Batch, loss: LossName = "kl") -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient in the hidden states, and measures of a random drafter."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(K, len(batch.starts_N), H, generator=generator, requires_grad=True)
    head = torch.randn(len(DRAFT_IDS), H, generator=generator)
    settings = LossSettings({loss: 1.0}, torch.ones(K), torch.full((K,), 0.4))
    value, measures_MKN = HeadLoss(VERIFIER, 8)(hidden, Heads.shared(head), batch, settings)
    [gradient] = torch.autograd.grad(value, hidden)
    return value.detach(), gradient, measures_MKN


@pytest.mark.parametrize("loss", LOSSES)
def test_full_and_topk_of_everything_are_final_but_for_rounding(loss: LossName) -> None:
    value, gradient, measures = outcome(make_batch(samples("final"), K), loss)
    full = outcome(make_batch(samples("full"), K), loss)
    everything = outcome(make_batch(samples(f"topk:{V}"), K), loss)
    for one, other in zip(full, everything, strict=True):
        assert torch.equal(one, other)
    # Log-probabilities are rounded to 8 bits: to 2^-9 of up to 8 nats.
    torch.testing.assert_close(full[0], value, rtol=0.02, atol=0)
    torch.testing.assert_close(full[1], gradient, rtol=0, atol=0.02 * float(gradient.abs().max()))
    torch.testing.assert_close(full[2], measures, rtol=0.03, atol=0.03)


def by_name(measures_MKN: Tensor, name: str) -> Tensor:
    return measures_MKN[MEASURES.index(name)]


def test_alpha_and_mass_of_kept_tokens_are_lower_bounds() -> None:
    """Off by no more than the mass that was not kept; what the replay needs is exact."""
    batch = make_batch(samples("full"), K)
    exact = outcome(batch)[2]
    used_KN = batch.rows_KN >= 0
    before = torch.zeros_like(by_name(exact, "alpha"))
    for kept in (1, 2, 4, 8, 16, V):
        topk = make_batch(samples(f"topk:{kept}"), K)
        assert topk.topk_logp_SC is not None
        tail_S = 1 - topk.topk_logp_SC.float().exp().sum(-1)
        tail_KN = torch.where(used_KN, tail_S[batch.rows_KN.clamp(min=0)], 0.0)
        measures = outcome(topk)[2]
        for name in ("alpha", "mass"):
            lost_KN = by_name(exact, name) - by_name(measures, name)
            assert (lost_KN >= -1e-6).all()
            # Rounded probabilities of a row do not add up to 1 exactly.
            assert (lost_KN <= tail_KN + 0.02).all()
        assert (by_name(measures, "alpha") >= before - 1e-6).all()
        before = by_name(measures, "alpha")
        for name in ("accept", "greedy_match", "greedy_text", "ce", "in_vocabulary"):
            assert torch.equal(by_name(measures, name), by_name(exact, name)), name
    torch.testing.assert_close(before, by_name(exact, "alpha"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["kl", "lk_alpha", "lk_hybrid", "tv"])
def test_a_row_that_keeps_nothing_of_the_draft_vocabulary_teaches_nothing(loss: LossName) -> None:
    outside = [token for token in range(V) if token not in DRAFT_IDS]
    [sample] = samples("topk:2")
    ids, logp = sample.states.topk_ids_SK, sample.states.topk_logits_SK
    assert ids is not None
    assert logp is not None
    ids, rows = ids.copy(), [3, 4, 11]
    ids[rows] = outside[:2]
    batch = make_batch([replace(sample, states=replace(sample.states, topk_ids_SK=ids))], K)
    value, gradient, measures = outcome(batch, loss)
    assert value.isfinite()
    assert measures.isfinite().all()
    assert gradient.isfinite().all()
    without_KN = torch.isin(batch.rows_KN, torch.tensor(rows))
    assert without_KN.any()
    assert not gradient[without_KN].any()
    for name in ("alpha", "mass", "kl", "lk"):
        assert not by_name(measures, name)[without_KN].any(), name


def test_a_batch_moves_and_packs_in_every_mode() -> None:
    names = {"final": "final_SH", "full": "logp_SV", "topk:3": "topk_ids_SC"}
    for mode, name in names.items():
        twice: Sequence[DrafterSample] = samples(mode) * 2
        batch = make_batch(twice, K).to(torch.device("cpu"))
        held = {other for other in names.values() if getattr(batch, other) is not None}
        assert held == {name}
        assert len(getattr(batch, name)) == len(batch.next_token_S) == 2 * 20
    [kept] = [sample.states.topk_ids_SK for sample in samples("topk:3")]
    assert kept is not None
    batch = make_batch(samples("topk:3"), K)
    assert batch.topk_ids_SC is not None
    assert np.array_equal(batch.topk_ids_SC.numpy(), kept)
