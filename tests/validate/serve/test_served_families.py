"""Targets that vLLM has no EAGLE-3 for are served with our plugin, and proven as all others are.

The real stages and a real vLLM: two engines per target. scripts/prove served takes all families.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from specpipe.schemas.records.served import ServeFindings
from specpipe.schemas.settings.stages import DumpConfig, ExportConfig, GenerateConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as dump
from specpipe.stages.export.run import run as export
from specpipe.stages.train.run import run as train
from tests.architectures import VOCAB, build

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

pytest.importorskip("vllm", reason="vLLM is not installed")

ALL = (
    *("gemma3", "mixtral", "olmoe", "gemma", "gemma2", "cohere", "cohere2", "exaone4"),
    *("glm4", "glm4_moe", "granite_moe", "nemotron", "qwen2_moe", "stablelm"),
)
FAMILIES = ALL if os.environ.get("SPECPIPE_ALL_FAMILIES") else ("gemma3",)
EXPERTS = ("olmoe", "glm4_moe", "granite_moe", "qwen2_moe")
"""Run in float32: rounding to bfloat16 sends tokens of a random router to other experts."""
PROMPTS = 40


def drafter_of(architecture: str, root: Path) -> Path:
    """A run trained on what a tiny random target wrote, just enough to have drafts accepted."""
    dtype = torch.float32 if architecture in EXPERTS else torch.bfloat16
    build(architecture, layers=6, dtype=dtype, head_dim=32).save_pretrained(root / "target")
    rng = np.random.default_rng(3)
    lines = [
        json.dumps(
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(ids)}
        )
        for ids in (rng.integers(3, VOCAB, 8).tolist() for _ in range(240))
    ]
    (root / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    dump(
        DumpConfig(
            target=str(root / "target"),
            data=(str(root / "prompts.jsonl"),),
            out=str(root / "dump"),
            backend="hf",
            generate=GenerateConfig(temperature=1.0, max_tokens=48),
        )
    )
    train(
        TrainConfig(
            dump=str(root / "dump"),
            out=str(root / "run"),
            loss="kl",
            num_heads=3,
            max_steps=80,
            eval_every=80,
            batch_tokens=2048,
            learning_rate=3e-3,
            held_out_fraction=0.25,
        )
    )
    return root / "run"


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_target_that_vllm_lacks_is_served_with_the_plugin(
    architecture: str, tmp_path: Path
) -> None:
    run = drafter_of(architecture, tmp_path)
    out = tmp_path / "artifact"
    export(
        ExportConfig(
            checkpoint=str(run),
            out=str(out),
            validation=("structure", "replay", "serve"),
            serve_prompts=PROMPTS,
            serve_max_tokens=64,
            serve_batch_sizes=(1,),
        )
    )
    text = (out / "validation.json").read_text(encoding="utf-8")
    found = ServeFindings.model_validate(json.loads(text)["serve"])
    assert found.with_plugin
    (served,) = found.runs
    greedy, sampled = served.greedy, served.temperature_1
    assert served.lossless_greedy.passed
    assert greedy is not None
    assert sampled is not None
    assert greedy.passed
    assert sampled.passed
    assert greedy.tau_measured > 1.1
    same = f"{served.lossless_greedy.num_identical} of {PROMPTS}"
    for name, unchanged, tau in (("greedy", same, greedy), ("temperature 1", "", sampled)):
        figures = f"{tau.tau_measured:.4f} | {tau.tau_replayed:.4f}"
        difference = f"{100 * tau.relative_difference:+.2f} %"
        print(f"\n| {architecture} | {name} | {unchanged} | {figures} | {difference} |")
    assert "SPECPIPE_VLLM_AUX_STATES=1 vllm serve" in (out / "README.md").read_text(
        encoding="utf-8"
    )
