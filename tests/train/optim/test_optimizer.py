"""AdamW and Muon: what each updates, by which rate, and that their state comes back bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from specpipe.schemas.errors import UnfinishedError
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.train.optim.optimizer import Optimizer
from specpipe.stages.train.run import run
from tests.train.conftest import MakeConfig, read_metrics, resolved, same_run

SHAPES = {
    "fc.weight": (16, 48),
    "layers.0.self_attn.q_proj.weight": (24, 32),
    "layers.0.mlp.down_proj.weight": (16, 40),
    "layers.0.hidden_norm.weight": (16,),
    "norm.weight": (16,),
    "lm_head.weight": (64, 16),
}
MATRICES = {name for name in SHAPES if name.startswith(("fc", "layers")) and "norm" not in name}


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return name in MATRICES


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    torch.manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}


def config(**settings: object) -> ResolvedTrainConfig:
    of_a_run = {"dump": "d", "out": "o", "optimizer": "adamw", "weight_decay": 0.0, **settings}
    return resolved(TrainConfig.model_validate(of_a_run))


def take_steps(optimizer: Optimizer, named: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        for name in SHAPES:
            named[name].grad = torch.randn(SHAPES[name], generator=generator)
        optimizer.set_rates(1 / (1 + step))
        optimizer.step()


def test_adamw_is_torchs_over_all_parameters() -> None:
    ours, theirs = parameters(), parameters()
    settings = config(learning_rate=0.01, weight_decay=0.1, adam_betas=(0.8, 0.9))
    take_steps(Optimizer(ours.items(), settings, is_matrix), ours, range(1))
    reference = torch.optim.AdamW(
        theirs.values(), lr=0.01, betas=(0.8, 0.9), weight_decay=0.1, fused=True
    )
    for name, parameter in theirs.items():
        parameter.grad = ours[name].grad
    reference.step()
    for name, parameter in theirs.items():
        assert torch.equal(ours[name], parameter), name


def test_muon_turns_hidden_matrices_by_orthogonal_steps_and_nothing_else() -> None:
    rate, muon_rate = 0.01, 0.03
    before, after = parameters(), parameters()
    optimizer = Optimizer(
        after.items(),
        config(optimizer="muon", learning_rate=rate, muon_learning_rate=muon_rate),
        is_matrix,
    )
    take_steps(optimizer, after, range(1))
    slots = {key.split("/")[0]: set[str]() for key in optimizer.state()}
    for key in optimizer.state():
        slots[key.split("/")[0]].add(key.split("/")[1])
    for name in SHAPES:
        step = (before[name] - after[name]).detach()
        if name in MATRICES:
            assert slots[name] == {"momentum_buffer"}
            # Newton-Schulz brings singular values near 1; then the size is that of AdamW's steps.
            values = torch.linalg.svdvals(step) / (muon_rate * 0.2 * max(step.shape) ** 0.5)
            assert values.min() > 0.3, name
            assert values.max() < 1.4, name
        else:
            assert slots[name] == {"step", "exp_avg", "exp_avg_sq"}
            # Of AdamW the first step has the size of the rate everywhere.
            torch.testing.assert_close(step.abs(), torch.full_like(step, rate), rtol=1e-3, atol=0)


def test_muons_rate_is_by_default_the_learning_rate() -> None:
    same, stated = parameters(), parameters()
    for named, settings in (
        (same, config(optimizer="muon", learning_rate=0.02)),
        (stated, config(optimizer="muon", learning_rate=0.02, muon_learning_rate=0.02)),
    ):
        take_steps(Optimizer(named.items(), settings, is_matrix), named, range(3))
    assert all(torch.equal(same[name], stated[name]) for name in SHAPES)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_by_name_continues_bit_for_bit_whatever_the_order(optimizer: str) -> None:
    settings = config(optimizer=optimizer, weight_decay=0.01)
    whole, broken = parameters(), parameters()
    take_steps(Optimizer(whole.items(), settings, is_matrix), whole, range(6))
    first = Optimizer(broken.items(), settings, is_matrix)
    take_steps(first, broken, range(3))
    saved = {key: value.clone() for key, value in first.state().items()}
    weights = {name: nn.Parameter(broken[name].detach().clone()) for name in reversed(SHAPES)}
    second = Optimizer(weights.items(), settings, is_matrix)
    second.load_state(saved)
    take_steps(second, weights, range(3, 6))
    for name in SHAPES:
        assert torch.equal(whole[name], weights[name]), name


def test_a_state_of_other_parameters_is_refused() -> None:
    named = parameters()
    optimizer = Optimizer(named.items(), config(), is_matrix)
    with pytest.raises(KeyError, match=r"layers\.7"):
        optimizer.load_state({"layers.7.weight/exp_avg": torch.zeros(1)})


def test_frozen_parameters_are_left_alone() -> None:
    named = parameters()
    named["lm_head.weight"].requires_grad_(False)
    before = named["lm_head.weight"].clone()
    optimizer = Optimizer(named.items(), config(optimizer="muon", weight_decay=0.5), is_matrix)
    take_steps(optimizer, named, range(2))
    assert torch.equal(before, named["lm_head.weight"])


def test_a_run_with_muon_learns_and_resumes_bit_for_bit(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    settings = {"optimizer": "muon", "muon_learning_rate": 0.01, "schedule": "wsd"}
    whole = make_config(out=str(tmp_path / "whole"), **settings)
    run(whole)
    broken = make_config(out=str(tmp_path / "broken"), **settings)
    for _ in range(4):
        with pytest.raises(UnfinishedError):
            run(broken.model_copy(update={"time_limit": 1e-6}))
    run(broken)
    same_run(Path(whole.out), Path(broken.out))
    losses = [row["draft_loss"] for row in read_metrics(whole.out) if "eval" not in row]
    assert losses[-1] < 0.9 * losses[0]
    saved = load_checkpoint(resolve_checkpoint(whole.out)).files["optimizer.safetensors"]
    assert b"fc.weight/momentum_buffer" in saved
    assert b"lm_head.weight/exp_avg_sq" in saved
