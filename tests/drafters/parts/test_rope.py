"""A drafter's rope is one that engines compute as training did."""

from typing import Any

import pytest
import torch
from transformers import (
    Gemma4TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2_5_VLTextConfig,
    Qwen3_5TextConfig,
)

from specpipe.schemas.drafters.eagle3 import Eagle3Settings
from specpipe.stages.drafters.eagle3.shape import drafter_shape
from specpipe.stages.drafters.parts.attention.rotary import Rotary, rotate
from specpipe.stages.drafters.parts.rope import rope_problems

SETTINGS = Eagle3Settings()
SIZE: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32}
LONGEST = 256
POSITIONS = torch.tensor([0, 1, 2, 77, 200, 255])

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 16,
    "long_factor": [2.0] * 16,
    "original_max_position_embeddings": 64,
}


def llama(**rope: Any) -> LlamaConfig:
    return LlamaConfig(**SIZE, max_position_embeddings=LONGEST, rope_parameters=rope)


def of_target(name: str) -> tuple[PretrainedConfig, dict[str, Any]]:
    """A target's configuration, and the rope that its drafter is to have."""
    default = {"rope_type": "default", "rope_theta": 1e7}
    sections = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    match name:
        case "default":
            return llama(**default), default
        case "linear":
            rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4}
            return llama(**rope), rope | {"factor": 4.0}
        case "llama3":
            return llama(**LLAMA3), LLAMA3 | {"factor": 8.0}
        case "yarn":
            return llama(**YARN), YARN
        case "yarn of DeepSeek":
            more = {"mscale": 1.0, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1}
            return llama(**YARN, **more, attention_factor=None), YARN | more
        case "yarn of gpt-oss":
            return llama(**YARN, truncate=False), YARN | {"truncate": False}
        case "yarn without a factor":
            return llama(**YARN | {"factor": None}), YARN
        case "yarn and M-RoPE":
            return llama(**YARN, **sections), YARN
        case "dynamic":
            return llama(rope_type="dynamic", rope_theta=1e7, factor=2.0), default
        case "longrope":
            return llama(**LONGROPE), {"rope_type": "default", "rope_theta": 1e4}
        case "Qwen3.5":
            rope = default | sections | {"partial_rotary_factor": 0.25}
            config = Qwen3_5TextConfig(
                **SIZE, max_position_embeddings=LONGEST, rope_parameters=rope
            )
            return config, default
        case "Qwen2.5-VL":
            legacy = {"type": "mrope", "mrope_section": [8, 4, 4]}
            old: dict[str, Any] = {"rope_theta": 1e7, "rope_scaling": legacy}
            return Qwen2_5_VLTextConfig(**SIZE, **old), default
        case "Gemma 4":
            of_type = {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {
                    "rope_type": "proportional",
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1e7,
                },
            }
            return Gemma4TextConfig(**SIZE, rope_parameters=of_type), default
    raise ValueError(name)


TARGETS = (
    "default",
    "linear",
    "llama3",
    "yarn",
    "yarn of DeepSeek",
    "yarn of gpt-oss",
    "yarn without a factor",
    "yarn and M-RoPE",
    "dynamic",
    "longrope",
    "Qwen3.5",
    "Qwen2.5-VL",
    "Gemma 4",
)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_lends_the_keys_that_the_rope_type_has(name: str) -> None:
    config, expected = of_target(name)
    rope = drafter_shape(config, SETTINGS, (1, 2, 3), 100, 50).rope_parameters
    assert rope == expected
    assert rope_problems(rope) == []


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_vllm_turns_queries_and_keys_as_training_did(name: str) -> None:
    """Legend: N tokens, n heads, E head size."""
    pytest.importorskip("vllm")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    config, _ = of_target(name)
    shape = drafter_shape(config, SETTINGS, (1, 2, 3), 100, 50)
    torch.manual_seed(0)
    query_NnE, key_NnE = torch.randn(2, len(POSITIONS), 4, 32)
    with set_current_vllm_config(VllmConfig()):
        engines = get_rope(
            shape.head_dim,
            max_position=shape.max_position_embeddings,
            rope_parameters=shape.rope_parameters,
            dtype=torch.float32,
        )
        rotated = engines.forward_native(POSITIONS, query_NnE.flatten(1), key_NnE.flatten(1))
    cos_sin = Rotary(shape)(POSITIONS, torch.float32)
    for given_NnE, theirs in zip((query_NnE, key_NnE), rotated, strict=True):
        ours_NnE = rotate(given_NnE, cos_sin)
        torch.testing.assert_close(theirs.view_as(ours_NnE), ours_NnE, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("rope", "says"),
    [
        ({"rope_theta": 1e4}, "must name rope_type and rope_theta"),
        (
            {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [2, 1, 1]},
            "have mrope_section, which rope type 'default' does not have",
        ),
        (
            {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5},
            "have partial_rotary_factor, which",
        ),
        (
            {"rope_type": "proportional", "rope_theta": 1e7, "partial_rotary_factor": 0.5},
            "have partial_rotary_factor, which",
        ),
        ({"rope_type": "linear", "rope_theta": 1e4}, "of type 'linear' lack factor"),
        ({"rope_type": "axial", "rope_theta": 1e4}, "'axial' is none of default, linear"),
    ],
)
def test_ropes_that_engines_take_otherwise_are_named(rope: dict[str, Any], says: str) -> None:
    assert says in "".join(rope_problems(rope))
