"""Families of targets from the plan to the exported drafter, as scripts/prove sweeps them all."""

import json
from pathlib import Path

import pytest

from scripts.families.__main__ import STEPS, run_family
from scripts.families.targets import FAMILIES, SWEEP
from specpipe.schemas.errors import ConfigError


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT-2", "Gemma 4 with per-layer input", "Mistral Small 3"])
def test_a_family_goes_all_the_way(name: str, tmp_path: Path) -> None:
    assert run_family(name, tmp_path / "family") == dict.fromkeys(STEPS, "ok")


@pytest.mark.slow
def test_the_artifact_for_a_target_with_mrope_has_a_plain_rope(tmp_path: Path) -> None:
    assert run_family("Qwen3.5", tmp_path / "family")["export"] == "ok"
    config = json.loads((tmp_path / "family/artifact/checkpoint/config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": 1e6}
    assert config["transformer_layer_config"]["rope_parameters"] == rope


def test_a_refused_family_ends_at_the_plan(tmp_path: Path) -> None:
    found = run_family("Gemma 3n", tmp_path / "family")
    assert list(found) == ["plan"]
    assert found["plan"].startswith(f"{ConfigError.exit_code}: Gemma3nForCausalLM is not supported")


def test_the_sweep_has_what_passed_before() -> None:
    assert len(SWEEP) == 41
    assert set(SWEEP) < set(FAMILIES)
