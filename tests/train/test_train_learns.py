"""What training reports and reaches on a tiny dump, for every loss."""

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from specpipe.schemas.records.metrics import EvalMetrics
from specpipe.schemas.settings.train import LossName
from specpipe.stages.samples.batch import make_batch
from specpipe.stages.samples.read_ahead import read_samples
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.samples.selection import limit_tokens, split
from specpipe.stages.storage.dump import Dump
from specpipe.stages.train.data.packing import epoch_batches
from specpipe.stages.train.run import run
from specpipe.stages.train.trainee import Trainee
from tests.train.conftest import MakeConfig, MakeDump, read_metrics, resolved


@pytest.mark.parametrize("loss", get_args(LossName))
def test_every_loss_falls_and_every_metric_is_reported(
    loss: LossName, make_config: MakeConfig
) -> None:
    config = make_config(loss=loss, max_steps=24, eval_every=12)
    result = run(config)
    rows = [row for row in read_metrics(config.out) if "eval" not in row]
    losses = [row["draft_loss"] for row in rows]
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])
    for row in rows:
        for name in ("lk", "kl", "cross_entropy", "alpha"):
            assert len(row[name]) == config.num_heads
            assert all(math.isfinite(value) for value in row[name]), name
        assert row["target_model_loss"] > 0
    evaluation = result.best
    assert EvalMetrics.model_validate(evaluation.model_dump()) == evaluation
    assert evaluation.num_positions > 100
    for curve in (evaluation.replay_temperature_1, evaluation.replay_greedy):
        assert len(curve.tau) == config.num_heads
        assert not curve.exact  # given text
        for k, (low, tau, high) in enumerate(
            zip(curve.tau_low, curve.tau, curve.tau_high, strict=True), start=1
        ):
            assert 1 <= low <= tau <= high <= k + 1


def test_evaluation_stands_before_the_first_step_and_at_the_end(make_config: MakeConfig) -> None:
    config = make_config()
    run(config)
    evaluations = [row for row in read_metrics(config.out) if "eval" in row]
    assert [row["step"] for row in evaluations] == [0, 4, 8, 12]
    assert all("draft_loss" not in row for row in evaluations)


def test_exactness_of_the_replay_follows_the_text(
    make_config: MakeConfig, make_dump: MakeDump
) -> None:
    sampled = make_dump(text_temperature=1.0)
    metrics = run(make_config(dump=str(sampled), max_steps=1)).best
    assert metrics.replay_temperature_1.exact
    assert metrics.replay_greedy_draft.exact
    assert not metrics.replay_greedy.exact


def test_train_never_loads_the_target(
    make_config: MakeConfig, make_dump: MakeDump, tmp_path: Path
) -> None:
    dump = make_dump()
    (dump.parent / "target" / "model.safetensors").unlink()
    assert run(make_config(dump=str(dump), max_steps=1)).steps == 1


def test_lambda_from_the_previous_step(make_config: MakeConfig, tmp_path: Path) -> None:
    losses = []
    for source in ("exact", "previous_step"):
        config = make_config(lambda_source=source, max_steps=3, out=str(tmp_path / source))
        run(config)
        losses.append([r["draft_loss"] for r in read_metrics(config.out) if "eval" not in r])
    # The first step has no step before it, so both take the exact alpha; then they part.
    assert losses[0][0] == losses[1][0]
    assert losses[0][2] != losses[1][2]


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    refs = [SampleRef(i // 10, i % 10, 20 + i % 7, f"{i:032x}") for i in range(95)]
    first = epoch_batches(refs, seed=1, epoch=0, batch_tokens=100, batch_size=None)
    assert first == epoch_batches(list(refs), 1, 0, 100, None)
    assert first != epoch_batches(refs, 1, 1, 100, None)
    assert first != epoch_batches(refs, 2, 0, 100, None)
    assert sorted((r.shard_id, r.index) for batch in first for r in batch) == sorted(
        (r.shard_id, r.index) for r in refs
    )
    assert all(sum(r.num_tokens for r in batch) <= 100 for batch in first)
    by_count = epoch_batches(refs, 1, 0, 100, batch_size=8)
    assert [len(batch) for batch in by_count] == [8] * 11 + [7]


def test_a_sample_longer_than_the_budget_is_a_step_of_its_own() -> None:
    refs = [SampleRef(0, i, n, f"{i:032x}") for i, n in enumerate((50, 500, 50, 50))]
    batches = epoch_batches(refs, 0, 0, 100, None)
    assert [r.num_tokens for batch in batches for r in batch if len(batch) == 1].count(500) == 1


def test_siblings_of_a_prompt_stay_on_one_side() -> None:
    refs = [SampleRef(0, i, 10, f"{(i % 20) * 2**120:032x}") for i in range(100)]
    training, held_out = split(refs, 0.3)
    assert {r.prompt_id for r in training}.isdisjoint({r.prompt_id for r in held_out})
    assert len(training) + len(held_out) == 100
    more = split(refs, 0.5)[1]
    assert {r.prompt_id for r in held_out} <= {r.prompt_id for r in more}


def test_evaluation_samples_are_chosen_by_prompt_not_by_place() -> None:
    refs = [SampleRef(i // 10, i % 10, 10, f"{(i * 7919) % 50:032x}") for i in range(50)]
    chosen = limit_tokens(refs, 100)
    assert sorted(r.prompt_id for r in chosen) == [f"{i:032x}" for i in range(10)]


def test_context_length_cuts_tokens_rows_and_states(dump: Path, make_config: MakeConfig) -> None:
    opened = Dump.open(str(dump))
    whole, cut = SampleReader(opened, None), SampleReader(opened, 10)
    config = make_config()
    trainee = Trainee.build(resolved(config), opened, None, None)
    refs = cut.refs()[:5]
    assert all(ref.num_tokens == 10 for ref in refs)
    batch = make_batch(list(read_samples(cut, refs)), 3)
    assert batch.num_tokens == 50
    assert len(batch.next_token_S) == 5 * 6  # tokens 4..9 of each sample are supervised
    same = [r for r in whole.refs() if (r.shard_id, r.index) == (0, refs[0].index)]
    long = make_batch(list(read_samples(whole, same)), 3)
    with torch.no_grad():
        # What a start sees does not depend on what comes after it.
        short = make_batch(list(read_samples(cut, refs[:1])), 3)
        cut_KNH, long_KNH = trainee.hidden(short), trainee.hidden(long)[:, :6]
    used_KN = short.rows_KN >= 0
    assert used_KN.sum(1).tolist() == [6, 5, 4]
    torch.testing.assert_close(cut_KNH[used_KN], long_KNH[used_KN], rtol=1e-5, atol=1e-5)
