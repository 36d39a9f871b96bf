"""A step in many packs has the gradient of the step in one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specpipe.stages.samples.batch import Batch, DrafterSample, make_batch
from specpipe.stages.samples.read_ahead import read_samples
from specpipe.stages.samples.reader import SampleReader
from specpipe.stages.storage.dump import Dump
from specpipe.stages.train.optim.objective import Measured
from specpipe.stages.train.run import run
from specpipe.stages.train.step import StepFigures, compute_gradients
from specpipe.stages.train.trainee import Trainee
from tests.train.conftest import MakeConfig, read_metrics, resolved


def gradients(
    trainee: Trainee, samples: Sequence[DrafterSample], pack_size: int
) -> tuple[StepFigures, dict[str, Tensor]]:
    num_heads = trainee.config.num_heads
    packs = [
        make_batch(samples[at : at + pack_size], num_heads)
        for at in range(0, len(samples), pack_size)
    ]
    figures = compute_gradients(trainee, packs, len(packs), Measured(), None)
    parameters = trainee.model.named_parameters()
    return figures, {name: p.grad.clone() for name, p in parameters if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "lk_hybrid"},
        {"loss": "kl"},
        {"loss": "ce"},
        {"loss": "lk_alpha"},
        {"loss": "dspark", "head_weights": "dpace"},
    ],
    ids=str,
)
def test_eight_packs_of_one_sample_are_one_of_eight(
    settings: dict[str, str], dtype: torch.dtype, make_config: MakeConfig
) -> None:
    config = make_config(**settings, max_grad_norm=1e9)
    dump = Dump.open(config.dump)
    reader = SampleReader(dump, None)
    samples = list(read_samples(reader, reader.refs()[:8]))
    # Samples differ in length, supervised share, and weight: means of packs are not the mean.
    weighted = [
        DrafterSample(s.input_ids, s.loss_mask, s.states, weight=float(1 + at % 3))
        for at, s in enumerate(samples)
    ]
    assert len({int(s.loss_mask.sum()) for s in weighted}) > 3
    trainee = Trainee.build(resolved(config), dump, None, None)
    trainee.model.to(dtype)
    if dtype == torch.float64:
        # The verifier's logits are float32: a product of other rows would round differently.
        logits = trainee.verifier.logits
        trainee.verifier = replace(
            trainee.verifier, logits=lambda rows: torch.cat([logits(row) for row in rows.split(1)])
        )
    one, of_one = gradients(trainee, weighted, 8)
    eight, of_eight = gradients(trainee, weighted, 1)
    assert len(one.losses_P) == 1
    assert len(eight.losses_P) == 8
    rtol = 1e-5 if dtype == torch.float32 else 1e-9
    assert eight.loss == pytest.approx(one.loss, rel=rtol)
    assert eight.grad_norm == pytest.approx(one.grad_norm, rel=rtol)
    assert eight.alpha == pytest.approx(one.alpha, rel=rtol)
    torch.testing.assert_close(eight.sums.sums, one.sums.sums, rtol=rtol, atol=rtol)
    for name, gradient in of_one.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            of_eight[name], gradient, rtol=10 * rtol, atol=10 * rtol * scale, msg=name
        )


def test_packs_of_a_run_change_its_losses_by_rounding_alone(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    whole = make_config(out=str(tmp_path / "whole"), loss="lk_hybrid")
    packed = make_config(out=str(tmp_path / "packed"), loss="lk_hybrid", pack_tokens=60)
    run(whole)
    run(packed)
    one, other = ([r for r in read_metrics(c.out) if "eval" not in r] for c in (whole, packed))
    assert [r["tokens"] for r in one] == [r["tokens"] for r in other]
    assert [r["draft_loss"] for r in other] == pytest.approx(
        [r["draft_loss"] for r in one], rel=1e-3
    )


def test_a_step_walks_packs_of_at_most_pack_tokens(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    hidden = Trainee.hidden

    def counted(trainee: Trainee, batch: Batch) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(batch.num_tokens)
        return hidden(trainee, batch)

    monkeypatch.setattr(Trainee, "hidden", counted)
    config = make_config(max_steps=3, pack_tokens=80)
    result = run(config)
    assert sum(sizes) == result.num_tokens
    assert max(sizes) <= 80
    assert len(sizes) > 9
