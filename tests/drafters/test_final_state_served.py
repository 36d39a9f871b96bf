"""EAGLE-1 and Medusa in a real vLLM: drafts lose nothing, and are accepted as replayed."""

import json
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.records.served import ServeFindings
from specpipe.schemas.settings.stages import DumpConfig, ExportConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as dump
from specpipe.stages.export.run import run as export
from specpipe.stages.train.run import run as train
from tests.validate.small import SAMPLE_DATA

PROMPTS, PROMPT_TOKENS, OFF = 32, 20, 0.05


def sample_dump(root: Path, name: str, num_samples: int) -> str:
    """Of texts that the sample target wrote, with the states that both read."""
    text = (SAMPLE_DATA / name / "generated.jsonl").read_text(encoding="utf-8")
    data = root / f"{name}.jsonl"
    data.write_text("\n".join(text.splitlines()[:num_samples]) + "\n", encoding="utf-8")
    dump(
        DumpConfig(
            target=str(SAMPLE_DATA / "target"),
            data=(str(data),),
            out=str(root / name),
            backend="hf",
            text_temperature=1.0,
            for_drafters=("eagle1", "medusa"),
        )
    )
    return str(root / name)


def prompts(path: Path) -> Path:
    """The held-out texts, all but their first tokens to be written again."""
    lines = (SAMPLE_DATA / "held_out" / "generated.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for row in rows:
        row["labels"] = [-100] * PROMPT_TOKENS + row["input_ids"][PROMPT_TOKENS:]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["eagle1", "medusa"])
def test_the_engine_accepts_what_the_replay_predicts(drafter: str, tmp_path: Path) -> None:
    """At temperature 0 and 1, K = 3; Medusa's drafts are greedy at both."""
    config = TrainConfig(
        dump=sample_dump(tmp_path, "train", 120),
        eval_dump=sample_dump(tmp_path, "held_out", 40),
        out=str(tmp_path / "run"),
        device="cpu",
        drafter=drafter,
        num_heads=3,
        max_steps=60,
        eval_every=60,
        batch_tokens=2048,
    )
    train(config)
    out = tmp_path / "served"
    export(
        ExportConfig(
            checkpoint=str(tmp_path / "run"),
            out=str(out),
            validation=("structure", "replay", "serve"),
            serve_data=str(prompts(tmp_path / "prompts.jsonl")),
            serve_prompts=PROMPTS,
            serve_max_tokens=64,
            serve_batch_sizes=(1,),
            serve_speculative_tokens=(3,),
        )
    )
    text = (out / "validation.json").read_text(encoding="utf-8")
    (served,) = ServeFindings.model_validate(json.loads(text)["serve"]).runs
    assert served.lossless_greedy.passed
    assert served.lossless_temperature_1.passed
    for found in (served.greedy, served.temperature_1):
        assert found is not None
        assert found.passed
        assert found.tau_measured == pytest.approx(found.tau_replayed, rel=OFF)
