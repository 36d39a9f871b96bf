"""A small target as one of a family that has MTP layers: the same function, other names.

A Llama is a Qwen2 whose biases are 0, which MiMo's checkpoints are; and a GLM-4-MoE whose layers
turn whole heads and norm neither queries nor keys. A Qwen3 is a GLM-4-MoE whose layers norm both.
All but the last are dense; the last one's shared experts are the dense MLP, and its routed experts
give 0: vLLM takes no GLM-4-MoE without one. The MTP layer, which is not in the checkpoint, is then
a mixture of experts.

A Qwen3 is also a Qwen3.5 of full attention alone: its gates are sigmoid(0), made up for by o_proj,
and its norms multiply by 1 + w. That w is rounded, so this one is near the function, not equal.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SHARED, ROUTED = 4, 8
SOURCES = {"mimo": ("llama",), "glm4_moe": ("llama", "qwen3"), "qwen3_5": ("qwen3",)}
"""Families, and what kinds of targets can be written as one."""

SAMPLE = Path(__file__).parents[2] / "sample_data" / "target"


def mtp_target(folder: Path, family: str, source: Path = SAMPLE) -> Path:
    """Write it, the tokenizer included; `family` is one of SOURCES."""
    assert family in SOURCES, family
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    layers = config["num_hidden_layers"]
    assert config["model_type"] in SOURCES[family], config["model_type"]
    config["num_nextn_predict_layers"] = 1
    if family == "mimo":
        config |= {"model_type": "qwen2", "architectures": ["MiMoForCausalLM"]}
        for layer in range(layers):
            for name in ("q_proj", "k_proj", "v_proj"):
                at = f"model.layers.{layer}.self_attn.{name}"
                rows = len(tensors[f"{at}.weight"])
                tensors[f"{at}.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
    elif family == "qwen3_5":
        _gate(tensors, config["head_dim"])
        rope = {**config["rope_parameters"], "partial_rotary_factor": 1.0}
        config |= {
            "model_type": "qwen3_5_text",
            "architectures": ["Qwen3_5ForCausalLM"],
            "rope_parameters": rope,
            "mtp_num_hidden_layers": 1,
        }
    else:
        tensors |= _as_experts(tensors, layers - 1)
        rope = {**config["rope_parameters"], "partial_rotary_factor": 1.0}
        config |= {
            "model_type": "glm4_moe",
            "architectures": ["Glm4MoeForCausalLM"],
            "rope_parameters": rope,
            "first_k_dense_replace": layers - 1,
            "use_qk_norm": config["model_type"] == "qwen3",
            "attention_bias": False,
            "moe_intermediate_size": config["intermediate_size"] // SHARED,
            "n_routed_experts": ROUTED,
            "num_experts_per_tok": 2,
            "n_shared_experts": SHARED,
            "n_group": 1,
            "topk_group": 1,
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _as_experts(tensors: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    """The dense MLP of a layer, which is taken out of `tensors`, as a mixture of experts."""
    mlp = f"model.layers.{layer}.mlp"
    made = {}
    for name in ("gate_proj", "up_proj", "down_proj"):
        dense = tensors.pop(f"{mlp}.{name}.weight")
        made[f"{mlp}.shared_experts.{name}.weight"] = dense
        if name == "down_proj":
            part = torch.zeros_like(dense[:, : dense.shape[1] // SHARED])
        else:
            part = dense[: len(dense) // SHARED]
        for expert in range(ROUTED):
            made[f"{mlp}.experts.{expert}.{name}.weight"] = part.clone()
    hidden = made[f"{mlp}.shared_experts.gate_proj.weight"].shape[1]
    made[f"{mlp}.gate.weight"] = torch.zeros(ROUTED, hidden, dtype=torch.bfloat16)
    made[f"{mlp}.gate.e_score_correction_bias"] = torch.zeros(ROUTED)
    return made


def _gate(tensors: dict[str, torch.Tensor], head_dim: int) -> None:
    """Gates of 1/2 behind each head's query, and norms less 1."""
    for name, tensor in tensors.items():
        if "norm" in name:
            tensors[name] = (tensor.float() - 1).to(tensor.dtype)
        elif name.endswith("q_proj.weight"):
            heads = tensor.view(-1, head_dim, tensor.shape[1])
            tensors[name] = torch.cat([heads, torch.zeros_like(heads)], dim=1).flatten(0, 1)
        elif name.endswith("o_proj.weight"):
            tensors[name] = 2 * tensor
