"""The `speculators` format of an EAGLE-3 drafter, which vLLM loads directly.

Every key that an engine may read is written out: engines disagree about the defaults, and a key
that is missing is not an error there but a drafter that guesses badly.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from specpipe.schemas.artifact import (
    CONFIG_FILE,
    EMBEDDING,
    LAYER_IDS,
    MODEL_TENSORS_FILE,
    SWITCHES,
    expected_tensors,
)
from specpipe.schemas.checkpoint import DrafterShape, TargetReference

SPECULATORS_VERSION = "0.9.0"
"""Version of the `speculators` library whose config layout this is."""


def artifact_config(
    shape: DrafterShape, target: TargetReference, speculative_tokens: int
) -> dict[str, Any]:
    """`config.json`, as vLLM's speculators loader reads it.

    The layer ids stand at the top: nested ones are read by one of vLLM's two model runners and
    ignored by the other. `num_aux_hidden_states` stands in the layer config, the only place where
    vLLM's drafter looks for it (it assumes 3 otherwise).
    """
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": shape.architecture,
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": shape.architecture,
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": speculative_tokens,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "verifier": {"name_or_path": target.name, "architectures": [target.architecture]},
        },
        "transformer_layer_config": {
            "model_type": shape.layer_type,
            "num_hidden_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "head_dim": shape.head_dim,
            "hidden_act": shape.hidden_act,
            "rms_norm_eps": shape.rms_norm_eps,
            "rope_parameters": shape.rope_parameters,
            "max_position_embeddings": shape.max_position_embeddings,
            "vocab_size": shape.vocab_size,
            "num_aux_hidden_states": shape.num_aux,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            **_window(shape),
        },
        "draft_vocab_size": shape.draft_vocab_size,
        "target_hidden_size": shape.target_hidden_size,
        **{switch: getattr(shape, switch) for switch in SWITCHES},
        LAYER_IDS: list(shape.aux_layers),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _window(shape: DrafterShape) -> dict[str, Any]:
    """vLLM takes a layer's window from these two keys, and without them looks back all the way."""
    if shape.sliding_window is None:
        return {}
    return {
        "layer_types": ["sliding_attention"] * shape.num_layers,
        "sliding_window": shape.sliding_window,
    }


def artifact_tensors(
    shape: DrafterShape,
    model: dict[str, Tensor],
    vocab: dict[str, Tensor],
    embedding: Callable[[], Tensor],
) -> dict[str, Tensor]:
    """The tensors to write: weights rounded to bfloat16, and the map where D < V.

    A drafter of another width than the target's gets its own embedding, the target's (`embedding`,
    [V, target's width]) as it projects it. Nothing else of the checkpoint is taken; what is missing
    is left for `structure` to name.
    """
    if shape.projects_embedding and "embed_proj.weight" in model:
        projected_VH = embedding().float() @ model["embed_proj.weight"].float().T
        model = model | {EMBEDDING: projected_VH}
    tensors = {}
    for name, (_, kind) in expected_tensors(shape).items():
        source = vocab if kind != "float" else model
        if name in source:
            tensor = source[name]
            tensors[name] = tensor.to(torch.bfloat16).contiguous() if kind == "float" else tensor
    return tensors


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files of the artifact into `folder`, which must exist."""
    (folder / MODEL_TENSORS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
