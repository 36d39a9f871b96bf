"""Sums of measures and the metrics made of them, against loops and against real decoding.

Legend: K heads, N starts, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from specpipe.schemas.records.dump import TextOrigin
from specpipe.schemas.records.metrics import EvalMetrics
from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.measures import MEASURES
from specpipe.stages.acceptance.loss.settings import LossSettings, hybrid_lambda
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.acceptance.measure_sums import MeasureSums
from specpipe.stages.acceptance.replay import ReplaySpan, replay
from specpipe.stages.samples.batch import Batch, DrafterSample, make_batch
from specpipe.stages.storage.shard.states import SampleStates
from tests.acceptance import reference
from tests.acceptance.loss.loss_rows import mean_alpha
from tests.acceptance.markov import Markov, Tokens, decode, sticky_toy, write_texts
from tests.drafters.toys import (
    DRAFT_IDS,
    H,
    V,
    random_drafter,
    random_samples,
    shape_of,
    verifier_of,
)

LOSSES: tuple[LossName, ...] = get_args(LossName)
GIVEN = TextOrigin()
LM_HEAD_VH = torch.randn(V, H, generator=torch.Generator().manual_seed(21)) * 0.5
K, ETA, DECAY = 3, 3.0, 0.8
MASKS = [
    [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
    [0, 1],
    [0, 0, 1],
    [0, 1, 1, 1, 1, 0, 0, 0],
]


def settings_of(loss: LossName, num_heads: int = K) -> LossSettings:
    return LossSettings({loss: 1.0}, DECAY ** torch.arange(num_heads), torch.zeros(num_heads))


@dataclass(frozen=True)
class Entry:
    """The measures of one head at one valid start."""

    sample: int
    start: int
    head: int
    weight: float
    emitted: bool
    measures: dict[str, float]

    def __getitem__(self, name: str) -> float:
        return self.measures[name]


def some_samples() -> list[DrafterSample]:
    return random_samples(MASKS, LM_HEAD_VH, seed=5)


def measured(samples: Sequence[DrafterSample]) -> tuple[Batch, Tensor, list[Entry]]:
    """A batch with made-up measures, a pure function of each sample's tokens."""
    batch = make_batch(samples, K)
    measures_MKN = torch.zeros(len(MEASURES), K, len(batch.starts_N), dtype=torch.float64)
    entries, n = [], 0
    for number, sample in enumerate(samples):
        rng = np.random.default_rng(sample.input_ids.tolist())
        mask = sample.loss_mask.tolist()
        for start in range(len(mask)):
            for head in range(1, K + 1):
                if not reference.is_valid(mask, start, head):
                    continue
                drawn = dict(zip(MEASURES, rng.random(len(MEASURES)).tolist(), strict=True))
                for name in ("in_vocabulary", "greedy_match", "greedy_text"):
                    drawn[name] = float(drawn[name] < 0.7)
                drawn["ce"] *= drawn["in_vocabulary"]
                measures_MKN[:, head - 1, n] = torch.tensor(
                    list(drawn.values()), dtype=torch.float64
                )
                emitted = mask[start + 1] == 1
                entries.append(Entry(number, start, head, sample.weight, emitted, drawn))
            n += reference.is_valid(mask, start, 1)
    assert n == len(batch.starts_N)
    return batch, measures_MKN, entries


def mean(entries: Sequence[Entry], name: str) -> float:
    total = sum(entry.weight for entry in entries)
    return sum(entry.weight * entry[name] for entry in entries) / total


def conditional(
    entries: Sequence[Entry], survives: Callable[[Entry], float], accepts: str
) -> list[float]:
    """Per head: acceptance weighted by the survival of the start's earlier drafts."""
    by_place = {(entry.sample, entry.start, entry.head): entry for entry in entries}
    rates = []
    for head in range(1, K + 1):
        numerator = denominator = 0.0
        for entry in (entry for entry in entries if entry.head == head):
            weight = entry.weight
            for earlier in range(1, head):
                weight *= survives(by_place[entry.sample, entry.start, earlier])
            numerator += weight * entry[accepts]
            denominator += weight
        rates.append(numerator / denominator)
    return rates


def test_metrics_are_those_of_the_definitions() -> None:
    samples = some_samples()
    batch, measures, everything = measured(samples)
    sums = MeasureSums(K, keep_spans=True)
    sums.add(batch, measures)
    metrics = sums.eval_metrics(settings_of("kl"), GIVEN)
    entries = [entry for entry in everything if entry.emitted]
    assert len(entries) < len(everything)
    heads = [[entry for entry in entries if entry.head == head] for head in range(1, K + 1)]

    def close(values: float | list[float]) -> object:
        return pytest.approx(values, abs=1e-12)

    assert metrics.alpha == close([mean(head, "alpha") for head in heads])
    assert metrics.lk == close([mean(head, "lk") for head in heads])
    assert metrics.kl == close([mean(head, "kl") for head in heads])
    assert metrics.attainable_mass == close(mean(heads[0], "mass"))
    inside = [[entry for entry in head if entry["in_vocabulary"]] for head in heads]
    assert metrics.cross_entropy == close([mean(head, "ce") for head in inside])
    assert metrics.out_of_vocabulary == close([1 - mean(head, "in_vocabulary") for head in heads])
    assert metrics.num_positions == sum(entry.weight for entry in heads[0])
    assert metrics.target_model_loss == pytest.approx(
        -sum(float(s.states.token_logprob_S.sum()) * s.weight for s in samples)
        / sum(len(s.states.token_logprob_S) * s.weight for s in samples),
        abs=1e-6,
    )
    assert metrics.temperature_1.acceptance_rate == close(
        conditional(entries, lambda entry: entry["accept"], "alpha")
    )
    # Along the text greedy drafting survives where the text is the target's choice and the draft's.
    assert metrics.greedy.acceptance_rate == close(
        conditional(entries, lambda e: e["greedy_match"] * e["greedy_text"], "greedy_match")
    )


def naive_spans(
    samples: Sequence[DrafterSample],
    entries: Sequence[Entry],
    measure: str,
) -> list[ReplaySpan]:
    """One decode per supervised run: its starts are those that emitted a token of the run."""
    by_place = {(entry.sample, entry.start, entry.head): entry for entry in entries}
    spans = []
    for number, sample in enumerate(samples):
        mask = sample.loss_mask.tolist()
        for begin in range(1, len(mask)):
            if not mask[begin] or (begin > 1 and mask[begin - 1]):
                continue
            end = begin
            while end < len(mask) and mask[end]:
                end += 1
            accept_RK = np.full((end - begin - 1, K), 0.5)
            for r in range(end - begin - 1):
                for k in range(1, K + 1):
                    entry = by_place.get((number, begin - 1 + r, k))
                    if entry is not None:
                        accept_RK[r, k - 1] = entry[measure]
            spans.append(ReplaySpan(accept_RK, end - begin, number, sample.weight))
    return spans


def test_replays_see_every_decode_of_the_text() -> None:
    samples = some_samples()
    batch, measures, entries = measured(samples)
    sums = MeasureSums(K, keep_spans=True)
    sums.add(batch, measures)
    metrics = sums.eval_metrics(settings_of("kl"), GIVEN)
    sampled = replay(naive_spans(samples, entries, "accept"), K, exact=False)
    greedy = replay(naive_spans(samples, entries, "greedy_text"), K, exact=False)
    for got, want in (
        (metrics.replay_temperature_1, sampled),
        (metrics.replay_greedy, greedy),
        (metrics.replay_greedy_draft, greedy),
    ):
        assert got.tau == pytest.approx(want.tau, abs=1e-6)
        assert got.num_rounds == pytest.approx(want.num_rounds, abs=1e-5)
        assert got.tau_low == pytest.approx(want.tau_low, abs=1e-5)
        assert got.tau_high == pytest.approx(want.tau_high, abs=1e-5)
        for one, other in zip(
            got.acceptance_per_position, want.acceptance_per_position, strict=True
        ):
            assert one == pytest.approx(other, abs=1e-6)
    assert metrics.replay_temperature_1.tau[-1] > 1


def metrics_over(batches: Sequence[Sequence[DrafterSample]]) -> EvalMetrics:
    sums = MeasureSums(K, keep_spans=True)
    for samples in batches:
        batch, measures, _ = measured(samples)
        sums.add(batch, measures)
    return sums.eval_metrics(settings_of("lk_hybrid"), GIVEN)


def flat(metrics: EvalMetrics) -> list[float]:
    """All numbers, but the count of samples."""

    def numbers(value: object) -> list[float]:
        if isinstance(value, dict):
            return [x for item in value.values() for x in numbers(item)]
        if isinstance(value, list):
            return [x for item in value for x in numbers(item)]
        assert isinstance(value, int | float)
        return [float(value)]

    return numbers(metrics.model_dump(exclude={"num_samples"}))


def test_batching_changes_nothing() -> None:
    samples = some_samples()
    whole = metrics_over([samples])
    for parts in ([samples[:2], samples[2:]], [[sample] for sample in reversed(samples)]):
        assert flat(metrics_over(parts)) == pytest.approx(flat(whole), abs=1e-9)


def test_multiplicity_is_repetition() -> None:
    samples = some_samples()
    copies = [replace(sample, weight=1.0) for sample in samples for _ in range(int(sample.weight))]
    one, other = metrics_over([samples]), metrics_over([copies])
    # To the intervals copies are observations of their own; nothing else differs.
    for name in ("replay_temperature_1", "replay_greedy", "replay_greedy_draft"):
        same = {"tau_low": getattr(one, name).tau_low, "tau_high": getattr(one, name).tau_high}
        other = other.model_copy(update={name: getattr(other, name).model_copy(update=same)})
    assert flat(other) == pytest.approx(flat(one), abs=1e-6)


@pytest.mark.parametrize("lambda_per_head", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_draft_loss_is_the_training_loss(loss: LossName, lambda_per_head: bool) -> None:
    """On text without the extra training start the evaluation reports what is minimised."""
    samples = random_samples([[1] * 9, [1] * 6], LM_HEAD_VH)
    batch = make_batch(samples, K)
    assert batch.emitted_N.all()
    model = random_drafter(shape_of(len(DRAFT_IDS)), 4)
    verifier, head = verifier_of(LM_HEAD_VH, DRAFT_IDS), model.lm_head.weight
    with torch.no_grad():
        hidden = model(batch)
        measures = HeadLoss(verifier, 100).measures(hidden, Heads.shared(head), batch)
        lambda_K = hybrid_lambda(mean_alpha(measures, batch), ETA) if lambda_per_head else None
        losses: dict[LossName, float] = {loss: 0.7, "ce": 0.3}
        loss_settings = LossSettings(losses, DECAY ** torch.arange(K), lambda_K, ETA)
        value, _ = HeadLoss(verifier, 100)(hidden, Heads.shared(head), batch, loss_settings)
    sums = MeasureSums(K)
    sums.add(batch, measures)
    assert sums.draft_loss(loss_settings) == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        (TextOrigin(), (False, False, False)),
        (TextOrigin(kind="given", temperature=1.0), (False, False, False)),
        (TextOrigin(kind="generated", temperature=1.0), (True, False, True)),
        (TextOrigin(kind="generated", temperature=0.0), (False, True, False)),
        (TextOrigin(kind="generated", temperature=0.7), (False, False, False)),
        (TextOrigin(kind="generated"), (False, False, False)),
    ],
)
def test_a_replay_is_exact_on_its_own_kind_of_text(
    text: TextOrigin, exact: tuple[bool, bool, bool]
) -> None:
    batch, measures, _ = measured(some_samples())
    sums = MeasureSums(K, keep_spans=True)
    sums.add(batch, measures)
    metrics = sums.eval_metrics(settings_of("kl"), text)
    replays = (metrics.replay_temperature_1, metrics.replay_greedy, metrics.replay_greedy_draft)
    assert tuple(curve.exact for curve in replays) == exact


def test_nothing_was_added() -> None:
    metrics = MeasureSums(K, keep_spans=True).eval_metrics(settings_of("lk_hybrid"), GIVEN)
    assert metrics.num_samples == metrics.num_positions == 0
    assert all(math.isfinite(x) for x in flat(metrics))


def markov_samples(toy: Markov, texts_Bn: Tokens) -> list[DrafterSample]:
    """Texts after a prompt of two tokens, the second of which is the text's first token."""
    logp_VV = np.log(toy.target_VV)
    samples = []
    for text in texts_Bn.tolist():
        ids = [0, *text]
        before, after = np.array(ids[1:-1]), np.array(ids[2:])
        rows = len(after)
        samples.append(
            DrafterSample(
                input_ids=np.array(ids, dtype=np.int32),
                loss_mask=np.array([0, 0] + [1] * rows, dtype=np.uint8),
                states=SampleStates(
                    aux_TLH=np.zeros((len(ids), 1, 1), dtype=np.uint16),
                    final_SH=before[:, None].astype(np.uint16),
                    logz_S=np.zeros(rows, dtype=np.float32),
                    token_logprob_S=logp_VV[before, after].astype(np.float32),
                    argmax_S=logp_VV[before].argmax(-1).astype(np.int32),
                ),
            )
        )
    return samples


def test_the_whole_path_is_real_decoding() -> None:
    """Markov target and drafter through batch, loss measures, sums and replay; then decoded."""
    toy, rng = sticky_toy(), np.random.default_rng(31)
    num_texts, num_tokens, num_heads = 3000, 40, 4
    batch = make_batch(
        markov_samples(toy, write_texts(toy, rng, num_texts, num_tokens + 1)), num_heads
    )
    logp_VV, logq_KVV = torch.tensor(toy.target_VV).log(), torch.tensor(toy.draft_KVV).log()
    # Head k at start i stands on token x[i+k]; the final state carries the token itself.
    last = batch.num_tokens - 1
    on_KN = torch.stack(
        [batch.input_ids_T[(batch.starts_N + k).clamp(max=last)] for k in range(1, num_heads + 1)]
    )
    hidden_KNV = torch.stack([logq_KVV[k][on_KN[k]] for k in range(num_heads)])
    everything = torch.arange(5)
    verifier = Verifier(
        lambda final_R1: logp_VV[final_R1.view(torch.uint16)[:, 0].long()], everything, everything
    )
    head = torch.eye(5, dtype=torch.float64)
    measures = HeadLoss(verifier, 10_000).measures(hidden_KNV, Heads.shared(head), batch)
    sums = MeasureSums(num_heads, keep_spans=True)
    sums.add(batch, measures)
    sampled = TextOrigin(kind="generated", temperature=1.0)
    metrics = sums.eval_metrics(settings_of("kl", num_heads), sampled)
    assert metrics.num_samples == num_texts
    curve = metrics.replay_temperature_1
    for drafts in range(1, num_heads + 1):
        # The text's own first token follows the prompt: the decode is one token shorter.
        decoded = decode(toy, rng, num_texts, num_tokens, drafts)
        rounds, tokens = decoded.rounds_B, decoded.rounds_B + decoded.accepted_BK.sum(1)
        tau = tokens.sum() / rounds.sum()
        sigma_decode = np.sqrt(((tokens - tau * rounds) ** 2).sum()) / rounds.sum()
        sigma_replay = (curve.tau_high[drafts - 1] - curve.tau_low[drafts - 1]) / (2 * 1.96)
        assert abs(curve.tau[drafts - 1] - tau) < 3 * math.hypot(sigma_decode, sigma_replay)

    # Without replay the metrics are those of uniform starts: 1 + sum of pi prod min(P, Q) 1.
    survival, closed_form = toy.stationary_V, 1.0
    for k in range(num_heads):
        survival = survival @ np.minimum(toy.target_VV, toy.draft_KVV[k])
        closed_form += survival.sum()
        assert metrics.temperature_1.number_of_tokens[k] == pytest.approx(closed_form, rel=0.01)
    assert measures[MEASURES.index("mass")][batch.rows_KN >= 0].min() > 1 - 1e-6
