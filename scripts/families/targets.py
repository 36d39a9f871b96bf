"""Tiny random targets of many families, of transformers' real config classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

VOCAB, LAYERS, LONGEST = 96, 4, 128

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_HEAD = {"head_dim": 32}
"""As wide as vLLM's attention on CPUs takes them."""
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 128,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_HYBRID = ["linear_attention", "full_attention"] * 2
_SLIDING = ["sliding_attention", "full_attention"] * 2
_MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 4, 4]}
_GPT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 128,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": LONGEST,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def of_type(model_type: str, **settings: Any) -> PreTrainedConfig:
    made: Any = CONFIG_MAPPING[model_type]
    config: PreTrainedConfig = made(**settings)
    return config


def text(model_type: str, *parts: dict[str, Any], **changes: Any) -> PreTrainedConfig:
    """A text model's config: the common shape, and what the family has beside it."""
    settings = dict(_TEXT)
    for part in (*parts, changes):
        settings |= part
    return of_type(model_type, **settings)


def wrapper(
    model_type: str,
    inner: PreTrainedConfig,
    vision: dict[str, Any] | None = None,
    **changes: Any,
) -> PreTrainedConfig:
    """A text model inside a model that also takes images."""
    return of_type(
        model_type,
        text_config=inner.to_dict(),
        vision_config=_VISION if vision is None else vision,
        **changes,
    )


def _gemma4(**changes: Any) -> PreTrainedConfig:
    common = {"layer_types": _SLIDING, "sliding_window": 16, "global_head_dim": 64}
    return text("gemma4_text", _HEAD, common, **changes)


def _pixtral() -> dict[str, Any]:
    return _VISION | {"model_type": "pixtral", "head_dim": 8}


def _clip() -> dict[str, Any]:
    return _VISION | {"model_type": "clip_vision_model", "projection_dim": 16}


def _llama(**rope: Any) -> PreTrainedConfig:
    return text("llama", rope_parameters={"rope_theta": 1e4, **rope})


SWEEP: dict[str, Callable[[], PreTrainedConfig]] = {
    "Apertus": lambda: text("apertus"),
    "Arcee": lambda: text("arcee"),
    "Cohere": lambda: text("cohere"),
    "Cohere 2": lambda: text("cohere2", _HEAD, sliding_window=16),
    "DeepSeek V2": lambda: text("deepseek_v2", _EXPERTS, _MLA, n_shared_experts=1),
    "DeepSeek V3": lambda: text("deepseek_v3", _EXPERTS, _MLA, n_shared_experts=1),
    "ERNIE 4.5": lambda: text("ernie4_5", _HEAD),
    "EXAONE 4": lambda: text("exaone4", layer_types=_SLIDING, sliding_window=16),
    "Falcon 7B": lambda: text("falcon", alibi=False, multi_query=True, parallel_attn=True),
    "Falcon 40B": lambda: text(
        "falcon", alibi=False, new_decoder_architecture=True, num_kv_heads=2
    ),
    "Gemma": lambda: text("gemma", _HEAD),
    "Gemma 3 wrapper": lambda: wrapper(
        "gemma3",
        text("gemma3_text", _HEAD, layer_types=_SLIDING, sliding_window=16),
        _VISION | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
    ),
    "GLM 4": lambda: text("glm4", _HEAD),
    "GLM 4 MoE": lambda: text(
        "glm4_moe", _HEAD, _EXPERTS, n_group=1, topk_group=1, first_k_dense_replace=1
    ),
    "Granite MoE": lambda: text("granitemoe", _EXPERTS),
    "Helium": lambda: text("helium", _HEAD),
    "HunYuan": lambda: text("hunyuan_v1_dense", _HEAD),
    "Jamba": lambda: text(
        "jamba",
        _EXPERTS,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "LFM2": lambda: text("lfm2", layer_types=["conv", "full_attention"] * 2),
    "MiniMax M2": lambda: text("minimax_m2", _HEAD, _EXPERTS, rotary_dim=16),
    "Ministral 3": lambda: text("ministral3", _HEAD),
    "Mistral without window": lambda: text("mistral", sliding_window=None),
    "Nemotron": lambda: text("nemotron", _HEAD),
    "OLMo 2": lambda: text("olmo2"),
    "OLMo 3": lambda: text("olmo3", layer_types=_SLIDING, sliding_window=16),
    "OPT": lambda: text("opt", ffn_dim=96, word_embed_proj_dim=128),
    "Phi": lambda: text("phi"),
    "PhiMoE": lambda: text("phimoe", _EXPERTS),
    "Qwen2 MoE": lambda: text("qwen2_moe", _EXPERTS, shared_expert_intermediate_size=32),
    "Qwen3-Next": lambda: text(
        "qwen3_next",
        _HEAD,
        _EXPERTS,
        _LINEAR,
        layer_types=_HYBRID,
        shared_expert_intermediate_size=32,
    ),
    "Qwen3.5": lambda: text(
        "qwen3_5_text",
        _HEAD,
        _LINEAR,
        layer_types=_HYBRID,
        rope_parameters=_MROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25},
    ),
    "Qwen3.5 wrapper": lambda: wrapper(
        "qwen3_5", text("qwen3_5_text", _HEAD, _LINEAR, layer_types=_HYBRID), _QWEN_VISION
    ),
    "Seed-OSS": lambda: text("seed_oss", _HEAD),
    "SmolLM3": lambda: text("smollm3"),
    "StableLM": lambda: text("stablelm"),
    "StarCoder 2": lambda: text("starcoder2"),
    "Llama, linear rope": lambda: _llama(rope_type="linear", factor=2.0),
    "Llama, dynamic rope": lambda: _llama(rope_type="dynamic", factor=2.0),
    "Llama, yarn": lambda: _llama(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32
    ),
    "Llama, longrope": lambda: _llama(
        rope_type="longrope",
        short_factor=[1.0] * 16,
        long_factor=[2.0] * 16,
        original_max_position_embeddings=64,
    ),
    "Llama, llama3 rope": lambda: _llama(
        rope_type="llama3",
        factor=4.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
}
"""What dumped, generated, trained and exported before (issue 13, row 39)."""

ADDED: dict[str, Callable[[], PreTrainedConfig]] = {
    "GPT-2": lambda: of_type("gpt2", **_GPT),
    "GPT-J": lambda: of_type("gptj", **_GPT, rotary_dim=16),
    "BLOOM": lambda: of_type("bloom", vocab_size=VOCAB, hidden_size=128, n_layer=4, n_head=4),
    "MPT": lambda: of_type(
        "mpt",
        vocab_size=VOCAB, d_model=128, n_layers=4, n_heads=4, max_seq_len=LONGEST
    ),
    "gpt-oss": lambda: text(
        "gpt_oss", _HEAD, _EXPERTS, layer_types=_SLIDING, sliding_window=16,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1.5e5, "factor": 4.0, "truncate": False,
            "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 32,
        },
    ),
    "Gemma 4": lambda: _gemma4(hidden_size_per_layer_input=0, num_kv_shared_layers=0),
    "Gemma 4 with per-layer input": lambda: _gemma4(
        hidden_size_per_layer_input=128,  # as wide as the states: only its role tells the norm
        vocab_size_per_layer_input=VOCAB,
        num_kv_shared_layers=1,
    ),
    "Gemma 4 wrapper": lambda: of_type(
        "gemma4",
        text_config=_gemma4(
            hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB, num_kv_shared_layers=0
        ).to_dict(),
        vision_config=_VISION | {"head_dim": 8, "global_head_dim": 8, "num_key_value_heads": 2},
        audio_config=None,
    ),
    "Llama 4": lambda: text(
        "llama4_text", _HEAD, _EXPERTS, intermediate_size_mlp=96, attention_chunk_size=32
    ),
    "Mistral Small 3": lambda: wrapper(
        "mistral3", text("mistral", _HEAD, sliding_window=None), _pixtral()
    ),
    "Qwen2-VL": lambda: wrapper(
        "qwen2_vl", text("qwen2_vl_text", rope_parameters=_MROPE),
        {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 128, "mlp_ratio": 2},
    ),
    "Qwen2.5-VL": lambda: wrapper(
        "qwen2_5_vl", text("qwen2_5_vl_text", rope_parameters=_MROPE), _QWEN_VISION
    ),
    "Qwen3-VL": lambda: wrapper(
        "qwen3_vl", text("qwen3_vl_text", _HEAD, rope_parameters=_MROPE), _QWEN_VISION
    ),
    "Qwen3-VL MoE": lambda: wrapper(
        "qwen3_vl_moe", text("qwen3_vl_moe_text", _HEAD, _EXPERTS, rope_parameters=_MROPE),
        _QWEN_VISION,
    ),
    "GLM 4.1V": lambda: wrapper(
        "glm4v", text("glm4v_text", rope_parameters=_MROPE),
        _QWEN_VISION,
    ),
    "LLaVA": lambda: wrapper("llava", text("llama"), _clip()),
    "LLaVA-NeXT": lambda: wrapper("llava_next", text("mistral", sliding_window=None), _clip()),
    "LLaVA-OneVision": lambda: wrapper(
        "llava_onevision", text("qwen2"), _VISION | {"model_type": "siglip_vision_model"}
    ),
    "InternVL": lambda: wrapper(
        "internvl", text("qwen2"), _VISION | {"image_size": [28, 28], "patch_size": [14, 14]}
    ),
    "Idefics 3": lambda: wrapper("idefics3", text("llama"), pad_token_id=0),
    "Aya Vision": lambda: wrapper(
        "aya_vision", text("cohere2", _HEAD, sliding_window=16),
        _VISION | {"model_type": "siglip_vision_model"},
    ),
}  # fmt: skip
"""What did not before, wrappers around a text decoder above all."""

REFUSED: dict[str, Callable[[], PreTrainedConfig]] = {
    "Gemma 3n": lambda: text(
        "gemma3n_text", _HEAD, layer_types=_SLIDING, sliding_window=16,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB, num_kv_shared_layers=1,
        laurel_rank=8, activation_sparsity_pattern=[0.0] * LAYERS,
    ),
    "BERT": lambda: text("bert", is_decoder=True),
}  # fmt: skip
"""What no drafter is trained for, with a reason in words."""

FAMILIES = SWEEP | ADDED | REFUSED


def save_family(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a target of random weights whose norms are not at their initial values."""
    torch.manual_seed(7)
    config = FAMILIES[name]()
    has_text_class = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    auto: Any = AutoModelForCausalLM if has_text_class else AutoModelForImageTextToText
    model = auto.from_config(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path or "ln_" in path:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    return folder
