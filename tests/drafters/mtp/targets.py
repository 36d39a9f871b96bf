"""Tiny targets of the MTP families, on disk, each with an MTP layer of its own."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from specpipe.schemas.drafters.mtp import MtpShape
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.mtp.model import Mtp
from specpipe.stages.drafters.mtp.shape import shape_of_config
from specpipe.stages.drafters.mtp.tensors import artifact_tensors
from specpipe.stages.target.head.target_tensors import NoTensors

VOCAB, LAYERS = 128, 3

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ROPE = {"rope_type": "default", "rope_theta": 100.0}
_EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
_QWEN = {
    **_SHAPE,
    "head_dim": 16,
    "layer_types": ["full_attention"] * LAYERS,
    "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.25},
}
_SHARED_EXPERT = {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 20}

TARGETS: dict[str, dict[str, Any]] = {
    "mimo": {
        **_SHAPE,
        "model_type": "qwen2",
        "architectures": ["MiMoForCausalLM"],
        "rope_parameters": _ROPE,
        "num_nextn_predict_layers": 1,
    },
    "glm4_moe": {
        **_SHAPE,
        **_EXPERTS,
        "model_type": "glm4_moe",
        "architectures": ["Glm4MoeForCausalLM"],
        "head_dim": 8,
        "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5},
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "use_qk_norm": True,
        "num_nextn_predict_layers": 1,
    },
    "ernie4_5_moe": {
        **_SHAPE,
        "model_type": "ernie4_5_moe",
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "rope_parameters": _ROPE,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "num_nextn_predict_layers": 1,
    },
    "qwen3_next": {
        **_QWEN,
        **_SHARED_EXPERT,
        "model_type": "qwen3_next",
        "architectures": ["Qwen3NextForCausalLM"],
        "num_nextn_predict_layers": 1,
    },
    "qwen3_5": {
        **_QWEN,
        "model_type": "qwen3_5_text",
        "architectures": ["Qwen3_5ForCausalLM"],
        "mtp_num_hidden_layers": 1,
    },
    "qwen3_5_moe": {
        **_QWEN,
        **_SHARED_EXPERT,
        "model_type": "qwen3_5_moe_text",
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "mtp_num_hidden_layers": 1,
    },
    "deepseek_v3": {
        **_SHAPE,
        **_EXPERTS,
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_key_value_heads": 4,
        "rope_parameters": _ROPE,
        "q_lora_rank": 16,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
    },
}

TARGETS["deepseek_dense"] = TARGETS["deepseek_v3"] | {"first_k_dense_replace": LAYERS + 1}


def save_target(folder: Path, family: str, *, seed: int = 0, with_mtp: bool = True) -> Path:
    """A target in float32, norms moved at random, whose MTP layer is random too."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(TARGETS[family])
    (folder / "config.json").write_text(text)
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    _scatter(model)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(text)
    if with_mtp:
        path = folder / "model.safetensors"
        layer = {name: t.float() for name, t in mtp_tensors(family, seed).items()}
        save_file({**load_file(path), **layer}, path, metadata={"format": "pt"})
    return folder


def shape_of(family: str) -> MtpShape:
    return shape_of_config(TARGETS[family])


def mtp_tensors(family: str, seed: int) -> dict[str, torch.Tensor]:
    """Under the names of a checkpoint."""
    shape = shape_of(family)
    torch.manual_seed(1000 + seed)
    model = Mtp(shape, NoTensors(VOCAB, shape.width), Runtime())
    _scatter(model)
    tensors = artifact_tensors(shape, model.state_dict())
    return {n if n.startswith("mtp.") else f"model.{n}": t for n, t in tensors.items()}


def _scatter(model: torch.nn.Module) -> None:
    """Weights of a size that makes every part matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.9 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
