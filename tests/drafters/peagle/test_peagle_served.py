"""P-EAGLE in a real vLLM: the output is the target's, and the replay's tau is the engine's."""

import json
from pathlib import Path

import pytest

from specpipe.schemas.records.served import ServeFindings
from specpipe.schemas.settings.stages import DumpConfig, ExportConfig
from specpipe.stages.dump.run import run as dump_run
from specpipe.stages.export.run import run as export
from specpipe.stages.train.run import run as train
from tests.drafters.peagle.conftest import training
from tests.validate.serve.test_export_serve import PROMPTS, SHARED, prompts_of_one_length
from tests.validate.small import SAMPLE_DATA


def sample_dump(name: str, num_samples: int, root: Path) -> Path:
    text = (SAMPLE_DATA / name / "generated.jsonl").read_text(encoding="utf-8")
    data = root / f"{name}.jsonl"
    data.write_text("\n".join(text.splitlines()[:num_samples]) + "\n", encoding="utf-8")
    config = DumpConfig(
        target=str(SAMPLE_DATA / "target"),
        data=(str(data),),
        out=str(root / name),
        backend="hf",
        text_temperature=1.0,
    )
    dump_run(config)
    return root / name


@pytest.mark.vllm
@pytest.mark.slow
def test_the_engine_agrees_with_the_replay(tmp_path: Path) -> None:
    settings = training(
        sample_dump("train", 120, tmp_path),
        tmp_path / "peagle-run",
        eval_dump=str(sample_dump("held_out", 24, tmp_path)),
        loss="kl",
        num_heads=3,
        layer_type="qwen3",
        draft_vocab_size=1024,
        max_steps=50,
        eval_every=50,
        batch_tokens=2048,
        learning_rate=2e-3,
        mask_token=None,
    )
    train(settings)
    # Of a name that vLLM takes for EAGLE-1's, were it to guess (T13).
    out = tmp_path / "peagle-artifact"
    prompts = prompts_of_one_length(tmp_path / "prompts.jsonl")
    export(
        ExportConfig(
            checkpoint=str(settings.out),
            out=str(out),
            validation=("structure", "serve"),
            serve_data=str(prompts),
            serve_speculative_tokens=(3,),
            **SHARED,
        )
    )
    validation = json.loads((out / "validation.json").read_text(encoding="utf-8"))
    found = ServeFindings.model_validate(validation["serve"])
    (measured,) = found.runs
    assert measured.lossless_greedy.num_identical >= 0.95 * PROMPTS
    assert measured.lossless_greedy.passed
    assert measured.lossless_temperature_1.passed
    greedy, sampled = measured.greedy, measured.temperature_1
    assert greedy is not None
    assert sampled is not None
    assert greedy.tau_measured > 1.1
    assert abs(greedy.relative_difference) <= 0.01
    assert greedy.acceptance_replayed == pytest.approx(greedy.acceptance_measured, abs=0.01)
    assert abs(sampled.relative_difference) <= max(0.02, 2 * sampled.relative_error_95)
    # Drafts of masked rows are accepted: an engine that chains them makes next to none (T12).
    assert greedy.acceptance_measured[1] > 0.01
