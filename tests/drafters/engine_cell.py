"""A drafter of the sample target in a real vLLM: dumped for, trained, exported, served."""

import json
from pathlib import Path

from specpipe.schemas.records.served import Served, ServeFindings
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.export.run import run as export
from specpipe.stages.train.run import run as train
from tests.validate.serve.test_export_serve import PROMPTS, SHARED, prompts_of_one_length


def served(config: TrainConfig, out: Path) -> Served:
    """Train, export, and what vLLM measured with 3 draft tokens.

    The drafts lose nothing, and are accepted within 1 % (greedy) and 2 % or twice the interval
    (temperature 1) as the replay predicts. The engine without a drafter is the one of all tests
    that ask it these prompts.
    """
    train(config)
    export(
        ExportConfig(
            checkpoint=config.out,
            out=str(out),
            validation=("structure", "replay", "serve"),
            serve_data=str(prompts_of_one_length(out.with_name("prompts.jsonl"))),
            serve_speculative_tokens=(3,),
            **SHARED,
        )
    )
    text = (out / "validation.json").read_text(encoding="utf-8")
    (found,) = ServeFindings.model_validate(json.loads(text)["serve"]).runs
    assert found.lossless_greedy.num_identical >= 0.95 * PROMPTS
    assert found.lossless_greedy.passed
    assert found.lossless_temperature_1.passed
    assert found.greedy is not None
    assert found.temperature_1 is not None
    assert found.greedy.passed
    assert found.temperature_1.passed
    assert abs(found.greedy.relative_difference) <= 0.01
    sampled = found.temperature_1
    assert abs(sampled.relative_difference) <= max(0.02, 2 * sampled.relative_error_95)
    return found
