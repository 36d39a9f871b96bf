"""DFlash in a real vLLM: drafts lose nothing, and are accepted as the replay predicts."""

import json
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.records.served import ServeFindings
from specpipe.schemas.settings.stages import DumpConfig, ExportConfig
from specpipe.stages.dump.run import run as dump
from specpipe.stages.export.run import run as export
from specpipe.stages.train.run import run as train
from tests.drafters.dflash.conftest import training
from tests.validate.small import SAMPLE_DATA

PROMPTS, PROMPT_TOKENS = 40, 20


def sample_dump(root: Path, name: str, num_samples: int) -> Path:
    """Of texts that the sample target wrote, with the layers that DFlash takes."""
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
            for_drafters=("dflash",),
        )
    )
    return root / name


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
def test_the_engine_accepts_what_the_replay_predicts(tmp_path: Path) -> None:
    """Two layers, whose norms differ (T1), blocks that are not causal (T20), at K = 3."""
    train(
        training(
            sample_dump(tmp_path, "train", 160),
            tmp_path / "run",
            eval_dump=str(sample_dump(tmp_path, "held_out", 40)),
            num_heads=3,
            draft_vocab_size=1024,
            max_steps=60,
            eval_every=60,
            batch_tokens=2048,
            anchors=64,
        )
    )
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
    assert served.greedy is not None
    assert served.temperature_1 is not None
    assert served.greedy.tau_measured > 1.05
    assert served.greedy.passed
    assert served.temperature_1.passed
    assert served.greedy.acceptance_replayed == pytest.approx(
        served.greedy.acceptance_measured, abs=0.015
    )
