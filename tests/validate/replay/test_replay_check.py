"""Level `replay`: the files against the trainer's code on the same weights; what rounding costs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specpipe.schemas.records.validation import ReplayFindings
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.schemas.settings.train import ResolvedTrainConfig, TrainConfig
from specpipe.stages.drafters.artifact import read_config
from specpipe.stages.drafters.eagle3.architecture import ARCHITECTURE
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.export.run import run
from specpipe.stages.runs.checkpoint import Checkpoint, load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget
from specpipe.stages.train.run import run as train
from specpipe.stages.validate.replay import agreement
from specpipe.stages.validate.replay import run as replay_check
from tests.validate.artifacts import Tensors, edit_config, edit_tensors
from tests.validate.small import Trained


@pytest.fixture
def checkpoint(trained: Trained) -> Checkpoint:
    return load_checkpoint(resolve_checkpoint(trained.run))


def replayed(trained: Trained, artifact: Path, checkpoint: Checkpoint) -> ReplayFindings:
    return replay_check.check(artifact, checkpoint, Dump.open(str(trained.dump)), None, None)


def exported_again(trained: Trained, artifact: Path, checkpoint: Checkpoint) -> ReplayFindings:
    """The replay of an artifact of this checkpoint, which is on no disk."""
    dump = Dump.open(str(trained.dump))
    tensors = drafter_kind(checkpoint.shape).artifact_tensors(
        checkpoint.shape,
        checkpoint.model,
        checkpoint.vocab.tensors(),
        StoredTarget(dump.target_file),
    )
    ARCHITECTURE.formats["speculators"].write(artifact, read_config(artifact), tensors)
    return replayed(trained, artifact, checkpoint)


def test_near_ties_that_rounding_breaks_are_no_failure(
    trained: Trained, artifact: Path, checkpoint: Checkpoint
) -> None:
    """The young drafter of issue 13: bfloat16 makes two tokens' logits one, and greedy drafts
    change by more than the 0.2 % that were allowed once."""
    lm_head_DH = checkpoint.model["lm_head.weight"].bfloat16().float()
    lm_head_DH[0::2] = lm_head_DH[1::2] * (1 - 1e-4)
    young = replace(checkpoint, model=checkpoint.model | {"lm_head.weight": lm_head_DH})
    found = exported_again(trained, artifact, young)
    assert found.passed, found.problems
    exported, before = found.artifact["replay_greedy"].tau, found.trained_tau["replay_greedy"]
    assert abs(exported[0] / before[0] - 1) > 0.002
    cost = found.rounding["replay_greedy"]
    assert cost.difference == pytest.approx([a - b for a, b in zip(exported, before, strict=True)])
    assert cost.low[0] < cost.difference[0] < cost.high[0]
    assert found.agreement is not None
    assert found.agreement.largest_difference < 1e-5


def test_every_start_is_compared(exported: Path) -> None:
    replay = json.loads((exported / "validation.json").read_text())["replay"]
    curve = replay["artifact"]["replay_temperature_1"]
    assert replay["agreement"]["num_starts"] > 3 * curve["num_rounds"][0]
    assert replay["agreement"]["num_in_float64"] == 0
    assert replay["rounding"]["replay_temperature_1"]["difference"] == pytest.approx(
        [
            ours - theirs
            for ours, theirs in zip(
                curve["tau"], replay["trained_tau"]["replay_temperature_1"], strict=True
            )
        ]
    )
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "rounding the trained weights to bfloat16 did, with 3 draft tokens" in card


def test_what_float32_leaves_open_is_looked_at_in_float64(
    trained: Trained, artifact: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "FLOAT32_LIMIT", 0.0)
    found = replayed(trained, artifact, checkpoint)
    assert found.passed, found.problems
    assert found.agreement is not None
    assert found.agreement.num_in_float64 == found.num_samples
    assert 0 < found.agreement.largest_in_float64 < 1e-12


def one_number(tensors: Tensors) -> None:
    """A step of bfloat16."""
    weight = tensors["layers.0.mlp.down_proj.weight"].view(torch.int16)
    weight[3, 5] += 1


def swap(tensors: Tensors) -> None:
    gate, up = "layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight"
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def next_tokens(tensors: Tensors) -> None:
    """d2t off by one, and t2d with it."""
    ids: Tensor = tensors["d2t"] + torch.arange(64)
    marked = torch.zeros(96, dtype=torch.bool)
    marked[(ids + 1).clamp(max=95)] = True
    shifted = marked.nonzero()[:, 0]
    if len(shifted) < 64:
        marked[(~marked).nonzero()[0]] = True
        shifted = marked.nonzero()[:, 0]
    tensors["d2t"], tensors["t2d"] = shifted - torch.arange(64), marked


@pytest.mark.parametrize(
    ("edit", "tensor"),
    [
        (one_number, "down_proj.weight is not the checkpoint's as an export writes it: 1 of"),
        (swap, "gate_proj.weight is not the checkpoint's"),
        (next_tokens, "d2t is not the checkpoint's"),
        (lambda t: t["norm.weight"].mul_(2), "tensor norm.weight is not the checkpoint's"),
        (lambda t: t.update({"fc.weight": t["fc.weight"].half()}), "fc.weight is torch.float16"),
    ],
)
def test_tensors_that_are_not_the_checkpoints(
    trained: Trained,
    artifact: Path,
    checkpoint: Checkpoint,
    edit: Callable[[Tensors], object],
    tensor: str,
) -> None:
    edit_tensors(artifact, edit)
    found = replayed(trained, artifact, checkpoint)
    assert not found.passed
    assert tensor in "; ".join(found.problems)
    assert ReplayFindings.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "change",
    [{"rope_theta": 5e4}, {"rope_theta": 10.0}, {"factor": 2.0, "rope_type": "linear"}],
)
def test_another_rope(
    trained: Trained, artifact: Path, checkpoint: Checkpoint, change: dict[str, object]
) -> None:
    edit_config(artifact, lambda c: c["transformer_layer_config"]["rope_parameters"].update(change))
    found = replayed(trained, artifact, checkpoint)
    assert not found.passed
    assert "the files are not the trained drafter: in sample 0, at token" in found.problems[0]


def test_figures_that_the_run_recorded_otherwise(
    trained: Trained, artifact: Path, checkpoint: Checkpoint
) -> None:
    """A run whose kernels computed something else: what it recorded is not what it trained."""
    dump = Dump.open(str(trained.dump))
    settings = ResolvedTrainConfig.model_validate_json((trained.run / "config.json").read_bytes())
    sound = replay_check.check(artifact, checkpoint, dump, settings, None)
    assert sound.passed
    assert sound.compared_with == "recorded"
    assert checkpoint.state.best is not None
    curve = checkpoint.state.best.replay_temperature_1
    other = curve.model_copy(update={"tau": [1.05 * tau for tau in curve.tau]})
    best = checkpoint.state.best.model_copy(update={"replay_temperature_1": other})
    state = checkpoint.state.model_copy(update={"best": best})
    found = replay_check.check(artifact, replace(checkpoint, state=state), dump, settings, None)
    assert not found.passed
    assert "but the run recorded" in found.problems[0]


@pytest.mark.parametrize("with_embedding", [False, True])
def test_drafters_with_an_embedding_of_their_own(
    trained: Trained, tmp_path: Path, with_embedding: bool
) -> None:
    """Of another width: the target's, projected; and a copy of the target's."""
    settings = json.loads((trained.run / "config.json").read_text())
    changes = {"out": str(tmp_path / "run"), "max_steps": 1, "eval_every": 1}
    if not with_embedding:
        changes |= {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    train(TrainConfig.model_validate(settings | changes))
    config = ExportConfig(
        checkpoint=str(tmp_path / "run"), out=str(tmp_path / "out"), with_embedding=with_embedding
    )
    assert run(config).levels == {"structure": True, "replay": True}
    replay = json.loads((tmp_path / "out" / "validation.json").read_text())["replay"]
    assert replay["agreement"]["largest_difference"] < 1e-5
