"""Against a real vLLM: the engine is lossless, and accepts what the replay predicts.

Engine starts take most of the time, so that the tests share them: `served` has one without a
drafter and one for each number of draft tokens, in one export. What is served with the settings
of `SHARED` starts no other engine without a drafter (conftest.py).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from specpipe.schemas.errors import ValidationError
from specpipe.schemas.records.served import ServeFindings
from specpipe.schemas.settings.stages import ConvertConfig, ExportConfig, ValidateConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.schemas.speedup import Recommendation
from specpipe.stages.export.convert import run as convert
from specpipe.stages.export.run import run
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.files.location import TargetSource
from specpipe.stages.train.run import run as train
from specpipe.stages.validate.replay import run as replay_check
from specpipe.stages.validate.run import run as validate
from specpipe.stages.validate.serve import run as serve
from specpipe.stages.validate.serve.capture import TargetCapture
from specpipe.stages.validate.serve.engine import EngineRequest, decode
from specpipe.stages.validate.serve.lossless import check_greedy, greedy_difference
from tests.validate.serve.vllm_server import vllm_server
from tests.validate.small import SAMPLE_DATA, Trained

ALL_VARIANTS = bool(os.environ.get("SPECPIPE_ALL_VARIANTS"))
"""scripts/prove variants"""
PROMPTS = 60
PROMPT_TOKENS = 20
SHARED: dict[str, Any] = {
    "serve_prompts": PROMPTS,
    "serve_max_tokens": 64,
    "serve_batch_sizes": (1,),
}
"""With the prompts of `prompts_of_one_length`."""


def held_out_rows() -> list[dict[str, Any]]:
    """Pretokenised prompts with the answers that the target wrote."""
    text = (SAMPLE_DATA / "held_out" / "generated.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompts_of_one_length(path: Path) -> Path:
    """The held-out texts with all but their first tokens to be written again.

    All outputs then end at the engine's longest length, where vLLM leaves off drafting for all.
    """
    rows = held_out_rows()
    for row in rows:
        row["labels"] = [-100] * PROMPT_TOKENS + row["input_ids"][PROMPT_TOKENS:]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def served(sample_trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with all three levels, of 3 and 5 draft tokens."""
    out = tmp_path_factory.mktemp("served")
    prompts = prompts_of_one_length(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")
    run(
        ExportConfig(
            checkpoint=str(sample_trained.run),
            out=str(out),
            validation=("structure", "replay", "serve"),
            serve_data=str(prompts),
            serve_speculative_tokens=(3, 5),
            **SHARED,
        )
    )
    return out


def findings(out: Path) -> ServeFindings:
    text = (out / "validation.json").read_text(encoding="utf-8")
    return ServeFindings.model_validate(json.loads(text)["serve"])


@pytest.mark.vllm
def test_engine_is_lossless(served: Path) -> None:
    found = findings(served)
    assert found.num_prompts == PROMPTS
    for measured in found.runs:
        greedy = measured.lossless_greedy
        assert greedy.num_identical + len(greedy.differences) == PROMPTS
        # Near-ties of bfloat16 logits may differ; most outputs must not.
        assert greedy.num_identical >= 0.95 * PROMPTS
        assert greedy.passed
        assert measured.lossless_temperature_1.passed


@pytest.mark.vllm
def test_replay_tells_the_truth(served: Path) -> None:
    found = findings(served)
    assert [measured.num_draft_tokens for measured in found.runs] == [3, 5]
    for measured in found.runs:
        greedy, sampled = measured.greedy, measured.temperature_1
        assert greedy is not None
        assert sampled is not None
        assert greedy.tau_measured > 1.1
        assert abs(greedy.relative_difference) <= 0.01
        assert abs(sampled.relative_difference) <= max(0.02, 2 * sampled.relative_error_95)
        assert greedy.acceptance_replayed == pytest.approx(greedy.acceptance_measured, abs=0.01)
        assert greedy.passed
        assert sampled.passed


@pytest.mark.vllm
def test_whole_rounds_are_almost_all_that_the_counters_count(served: Path) -> None:
    for measured in findings(served).runs:
        counters, greedy = measured.counters_greedy, measured.greedy
        assert greedy is not None
        assert counters.num_draft_tokens == counters.num_drafts * measured.num_draft_tokens
        assert sum(counters.accepted_per_position) == counters.num_accepted_tokens
        cut = counters.num_drafts - greedy.num_rounds_measured
        assert PROMPTS / 2 <= cut <= PROMPTS * measured.num_draft_tokens
        assert cut < 0.1 * counters.num_drafts
        accepted = (greedy.tau_measured - 1) * greedy.num_rounds_measured
        accepted_in_cut = counters.num_accepted_tokens - accepted
        # Ends of answers are easier than the rest, by how much depends on the drafter.
        assert -1e-6 <= accepted_in_cut <= cut * measured.num_draft_tokens


@pytest.mark.vllm
def test_steps_are_timed_for_each_number_of_draft_tokens(served: Path) -> None:
    timed = findings(served).step_times
    assert [(time.batch_size, time.num_draft_tokens) for time in timed] == [
        (1, count) for count in (None, 0, 1, 2, 3, 4, 5)
    ]
    assert all(time.seconds_per_step > 0 for time in timed)
    text = (served / "validation.json").read_text(encoding="utf-8")
    advice = Recommendation.model_validate(json.loads(text)["recommendation"])
    (speedup,) = advice.speedups
    assert speedup.measured.keys() == {3, 5}
    assert speedup.cost.idle > 0


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(not ALL_VARIANTS, reason="scripts/prove variants runs it")
def test_engine_that_follows_a_schedule(sample_trained: Trained, served: Path) -> None:
    """Batches become small as their outputs end: numbers change within each of them."""
    prompts = [row["input_ids"][: 20 + i] for i, row in enumerate(held_out_rows()[:16])]
    request = EngineRequest(
        target=str(sample_trained.target),
        artifact=None,
        prompts=prompts,
        max_tokens=64,
        temperatures=[0.0],
        seed=0,
    )
    plain = decode(request)
    changes = {
        "artifact": str(served / "checkpoint"),
        "num_draft_tokens": 5,
        "draft_schedule": [(1, 8, 5), (9, 12, 0), (13, 16, 2)],
    }
    scheduled = decode(request.model_copy(update=changes))
    capture = TargetCapture(
        TargetSource(str(sample_trained.target)), (1, 2, 3), trust_remote_code=False
    )
    before, after = plain.decoded[0].output_ids, scheduled.decoded[0].output_ids
    texts = capture.capture(prompts, after)
    differences = [
        greedy_difference(i, one, other, text.output_logits_SV.numpy())
        for i, (one, other, text) in enumerate(zip(before, after, texts, strict=True))
    ]
    assert check_greedy(differences).passed
    rounds = scheduled.decoded[0].counters
    assert rounds is not None
    assert 2 * rounds.num_drafts < rounds.num_draft_tokens < 5 * rounds.num_drafts


@pytest.mark.vllm
def test_a_finished_export_still_shows_what_was_measured(
    sample_trained: Trained, served: Path
) -> None:
    text = (served / "validation.json").read_text(encoding="utf-8")
    result = run(ExportConfig.model_validate(json.loads(text)["config"]))
    assert result.did_nothing
    assert result.served == findings(served).runs


@pytest.mark.vllm
def test_card_has_what_was_measured(served: Path) -> None:
    assert "measured in vLLM" in (served / "README.md").read_text(encoding="utf-8")


@pytest.mark.vllm
@pytest.mark.slow
def test_unrepaired_engine_is_found_not_to_be_lossless(
    sample_trained: Trained, served: Path
) -> None:
    """The fault of vLLM's CPU build, left in: no acceptance is compared, and the level fails."""
    prompts = [row["input_ids"][: row["labels"].count(-100)] for row in held_out_rows()[:24]]
    config = ExportConfig(checkpoint="-", out="-", serve_max_tokens=32)
    found = serve.check(
        served / "checkpoint",
        TargetSource(str(sample_trained.target)),
        prompts,
        config,
        lambda _: None,
        fix_cpu=False,
    )
    if found.vllm_version != "0.32.0":
        pytest.skip(f"vLLM {found.vllm_version} may not have the fault")
    (measured,) = found.runs
    assert not found.cpu_fix_applied
    assert measured.lossless_greedy.passed
    assert not measured.lossless_temperature_1.passed
    assert measured.temperature_1 is None
    assert "vLLM's output at temperature 1 is not the target's" in "; ".join(found.problems)


Variant = tuple[str, dict[str, object], str]
"""Format, settings of the training, and a tensor that only such an artifact has."""

NORMS: dict[str, object] = dict.fromkeys(
    ("norm_before_residual", "norm_before_fc", "norm_output"), True
)
"""Every norm that goes with the others."""
VARIANTS: dict[str, Variant] = {
    "two layers of Qwen3's kind, norms and the whole vocabulary": (
        "speculators",
        {"layer_type": "qwen3", "num_layers": 2, "draft_vocab_size": None, **NORMS},
        "layers.1.self_attn.k_norm.weight",
    ),
}
if ALL_VARIANTS:
    VARIANTS |= {
        "norms and the whole vocabulary": (
            "eagle3",
            {"draft_vocab_size": None, **NORMS, "norm_before_fc": False, "fc_norm": True},
            "fc_norm.2.weight",
        ),
        "two layers of Qwen3's kind": (
            "speculators",
            {"layer_type": "qwen3", "num_layers": 2},
            "layers.1.self_attn.k_norm.weight",
        ),
        "two layers of Llama's kind": (
            "speculators",
            {"num_layers": 2},
            "layers.1.mlp.up_proj.weight",
        ),
        "a sliding window": ("speculators", {"sliding_window": 16}, "fc.weight"),
        "another width than the target's": (
            "speculators",
            {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2},
            "embed_tokens.weight",
        ),
        "two aux layers": ("eagle3", {"layers": (2, 5)}, "fc.weight"),
        "one norm before fc": ("speculators", {"norm_before_fc": True}, "input_norm.weight"),
    }


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_architecture(
    variant: str, sample_trained: Trained, tmp_path: Path
) -> None:
    """vLLM computes what was trained: the norms that are off by default, further layers."""
    format, settings, tensor = VARIANTS[variant]
    text = (sample_trained.run / "config.json").read_text(encoding="utf-8")
    changes = {
        "out": str(tmp_path / "run"),
        "max_steps": 20,
        "num_heads": 3,
        "eval_tokens": 2000,
        **settings,
    }
    train(TrainConfig.model_validate(json.loads(text) | changes))
    run(
        ExportConfig(
            checkpoint=str(tmp_path / "run"),
            out=str(tmp_path / "out"),
            format=format,
            with_embedding=format == "eagle3",
            validation=("structure", "replay", "serve"),
            serve_data=str(prompts_of_one_length(tmp_path / "prompts.jsonl")),
            **SHARED,
        )
    )
    (measured,) = findings(tmp_path / "out").runs
    assert measured.greedy is not None
    assert measured.greedy.tau_measured > 1.05
    tensors = load_file(tmp_path / "out" / "checkpoint" / "model.safetensors")
    assert tensor in tensors
    assert ("d2t" in tensors) == ("draft_vocab_size" not in settings)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_converted_artifact_serves(sample_trained: Trained, tmp_path: Path) -> None:
    """`eagle3`, under the name that every engine loads, proven on its own."""
    source, out = tmp_path / "source", tmp_path / "eagle3"
    run(
        ExportConfig(checkpoint=str(sample_trained.run), out=str(source), validation=("structure",))
    )
    convert(ConvertConfig(source=str(source), out=str(out), format="eagle3"))
    found = validate(
        ValidateConfig(
            artifact=str(out),
            dump=str(sample_trained.dump),
            validation=("structure", "replay", "serve"),
            replay_samples=20,
            serve_data=str(prompts_of_one_length(tmp_path / "prompts.jsonl")),
            **SHARED,
        )
    )
    assert "midlayer.hidden_norm.weight" in load_file(out / "model.safetensors")
    assert found.serve is not None
    (measured,) = found.serve.runs
    assert measured.greedy is not None
    assert measured.greedy.tau_measured > 1.1
    assert abs(measured.greedy.relative_difference) <= 0.01


@pytest.mark.vllm
@pytest.mark.slow
def test_a_server_that_runs_is_measured_from_outside(
    sample_trained: Trained, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stock server with a token: its counters agree with the replay of what it wrote."""
    monkeypatch.setenv("SPECPIPE_SERVE_TOKEN", "open sesame")
    prompts = prompts_of_one_length(tmp_path / "prompts.jsonl")
    with vllm_server(sample_trained.target, served / "checkpoint", 3, "open sesame") as url:
        config = ValidateConfig(
            artifact=str(served),
            dump=str(sample_trained.dump),
            validation=("structure", "serve"),
            serve_data=str(prompts),
            serve_prompts=48,
            serve_max_tokens=32,
            serve_url=url,
            out=str(tmp_path / "findings.json"),
        )
        found = validate(config).serve
    assert found is not None
    assert (found.server, found.num_prompts) == (url, 48)
    (measured,) = found.runs
    assert measured.num_draft_tokens == 3
    assert measured.greedy is not None
    assert measured.temperature_1 is not None
    assert measured.greedy.tau_measured > 1.1
    assert measured.greedy.num_rounds_measured == measured.counters_greedy.num_drafts
    assert measured.lossless_temperature_1.z is None
    assert "sesame" not in (tmp_path / "findings.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_replay_refuses_another_rope(sample_trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(ExportConfig(checkpoint=str(sample_trained.run), out=str(out), validation=("structure",)))
    path = out / "checkpoint" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["transformer_layer_config"]["rope_parameters"]["rope_theta"] = 10.0
    path.write_text(json.dumps(config), encoding="utf-8")
    checkpoint = load_checkpoint(resolve_checkpoint(sample_trained.run))
    dump = Dump.open(str(sample_trained.dump))
    found = replay_check.check(out / "checkpoint", checkpoint, dump, None, 20)
    assert not found.passed


@pytest.mark.vllm
@pytest.mark.slow
def test_engine_that_does_not_start_shows_its_log(trained: Trained, tmp_path: Path) -> None:
    request = EngineRequest(
        target=str(trained.target),
        artifact=str(tmp_path / "nothing"),
        num_draft_tokens=3,
        prompts=[[3, 4]],
        max_tokens=4,
        temperatures=[0.0],
        seed=0,
    )
    with pytest.raises(ValidationError, match=r"vLLM failed \(exit code 1\).*nothing"):
        decode(request)
