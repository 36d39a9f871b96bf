"""Validation level `structure`: an engine would load these files as the drafter that was trained.

What an engine does not check is checked here: it takes a missing key for a default, a missing d2t
for the identity, and ids of other layers for the right ones, and then serves a drafter whose
guesses are rejected.

Legend: D draft vocabulary, V vocabulary.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from specpipe.schemas.artifact import (
    ALLOWED_KEYS,
    ALLOWED_LAYER_KEYS,
    CONFIG_FILE,
    LAYER_IDS,
    LAYER_TYPES,
    MODEL_TENSORS_FILE,
    REQUIRED_KEYS,
    REQUIRED_LAYER_KEYS,
    SWITCHES,
    expected_tensors,
)
from specpipe.schemas.checkpoint import DrafterShape

DTYPES = {
    "float": (torch.bfloat16, torch.float16, torch.float32),
    "int64": (torch.int64,),
    "bool": (torch.bool,),
}


class TargetFacts(BaseModel):
    """What the artifact must agree with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int


class StructureFindings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    num_tensors: int
    num_parameters: int
    problems: list[str]


def check(
    folder: Path, target: TargetFacts, trained: DrafterShape | None = None
) -> StructureFindings:
    """Everything that is wrong with the artifact in `folder`; with `trained`, also every setting
    in which it differs from the drafter that was trained."""
    problems: list[str] = []
    tensors: dict[str, Tensor] = {}
    try:
        tensors = load_file(folder / MODEL_TENSORS_FILE)
    except (SafetensorError, OSError) as error:
        problems.append(f"{MODEL_TENSORS_FILE} cannot be read: {error}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        problems.append(f"{CONFIG_FILE} cannot be read: {error}")
        config = None
    if isinstance(config, dict):
        missing = _keys(config)
        problems += missing
        if not missing:
            shape = _shape(config, problems)
            if shape is not None:
                problems += _consistent(config, shape, target)
                problems += _as_trained(shape, trained)
                if tensors:
                    problems += _tensors(tensors, shape)
    elif config is not None:
        problems.append(f"{CONFIG_FILE} does not hold a JSON object")
    return StructureFindings(
        passed=not problems,
        num_tensors=len(tensors),
        num_parameters=sum(t.numel() for t in tensors.values() if t.is_floating_point()),
        problems=problems,
    )


def _keys(config: Mapping[str, Any]) -> list[str]:
    """Missing and unknown keys, at the top and in the layer's config."""
    layer = config.get("transformer_layer_config", {})
    if not isinstance(layer, dict):
        return [f"{CONFIG_FILE}: transformer_layer_config is not an object"]
    problems = []
    for where, values, required, allowed in (
        (CONFIG_FILE, config, REQUIRED_KEYS, ALLOWED_KEYS),
        ("transformer_layer_config", layer, REQUIRED_LAYER_KEYS, ALLOWED_LAYER_KEYS),
    ):
        problems += [
            f"{where}: key {key!r} is missing; an engine would assume a default for it"
            for key in sorted(required - set(values))
        ]
        problems += [
            f"{where}: key {key!r} is unknown; it belongs elsewhere or is misspelt"
            for key in sorted(set(values) - allowed)
        ]
    return problems


def _shape(config: Mapping[str, Any], problems: list[str]) -> DrafterShape | None:
    """The drafter that the config declares; None, and a problem, where a value has no sense."""
    layer = config["transformer_layer_config"]
    try:
        return DrafterShape(
            architecture=config["speculators_model_type"],
            layer_type=layer["model_type"],
            num_layers=layer["num_hidden_layers"],
            sliding_window=layer.get("sliding_window"),
            target_hidden_size=config["target_hidden_size"],
            aux_layers=tuple(config[LAYER_IDS]),
            **{key: config[key] for key in _TOP_KEYS},
            **{key: layer[key] for key in _LAYER_KEYS},
        )
    except (ValueError, TypeError) as error:
        problems.append(f"{CONFIG_FILE}: {error}")
        return None


_TOP_KEYS = ("draft_vocab_size", *SWITCHES)
_LAYER_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "hidden_act",
    "rope_parameters",
    "max_position_embeddings",
    "vocab_size",
)


def _consistent(config: Mapping[str, Any], shape: DrafterShape, target: TargetFacts) -> list[str]:
    """The config against itself and against the target's."""
    problems = []
    layer, speculators = config["transformer_layer_config"], config["speculators_config"]
    ids = list(shape.aux_layers)
    outside = [k for k in ids if not 1 <= k <= target.num_layers]
    if not ids or outside or ids != sorted(set(ids)):
        problems.append(
            f"{LAYER_IDS} {ids} must ascend within 1..{target.num_layers}"
            " (id k is the residual stream that enters decoder layer k)"
        )
    expected: list[tuple[str, Any, Any]] = [
        ("speculators_model_type", config["speculators_model_type"], "eagle3"),
        ("num_aux_hidden_states", layer["num_aux_hidden_states"], len(ids)),
        ("target_hidden_size", config["target_hidden_size"], target.hidden_size),
        ("vocab_size", shape.vocab_size, target.vocab_size),
        ("attention_bias", layer["attention_bias"], False),
        ("mlp_bias", layer["mlp_bias"], False),
        ("tie_word_embeddings", config["tie_word_embeddings"], False),
    ]
    problems += [
        f"{name} is {value!r}, but must be {right!r}"
        for name, value, right in expected
        if value != right
    ]
    if shape.layer_type not in LAYER_TYPES:
        problems.append(
            f"model_type {shape.layer_type!r} is none of {', '.join(LAYER_TYPES)}: vLLM has no"
            " such EAGLE-3 layer"
        )
    if shape.num_layers < 1:
        problems.append(f"num_hidden_layers {shape.num_layers} is not positive")
    windows = ["sliding_attention"] * shape.num_layers if shape.sliding_window else None
    if layer.get("layer_types") != windows:
        problems.append(
            f"layer_types {layer.get('layer_types')!r} must be {windows!r} for a sliding_window of"
            f" {shape.sliding_window!r}"
        )
    if not 0 < shape.draft_vocab_size <= shape.vocab_size:
        problems.append(
            f"draft_vocab_size {shape.draft_vocab_size} is not in 1..{shape.vocab_size}"
        )
    if shape.norm_before_fc and shape.fc_norm:
        problems.append("norm_before_fc and fc_norm exclude each other")
    if "rope_type" not in shape.rope_parameters or "rope_theta" not in shape.rope_parameters:
        problems.append("rope_parameters must name rope_type and rope_theta")
    try:
        method = speculators["proposal_methods"][0]
        if not (isinstance(method["speculative_tokens"], int) and method["speculative_tokens"] > 0):
            problems.append("speculative_tokens must be a positive number")
        architectures = speculators["verifier"]["architectures"]
        if not speculators["verifier"]["name_or_path"]:
            problems.append("speculators_config.verifier.name_or_path is empty")
        if architectures != [target.architecture]:
            problems.append(
                f"the verifier's architectures {architectures} are not {[target.architecture]}"
            )
        if speculators["algorithm"] != config["speculators_model_type"]:
            problems.append(f"algorithm {speculators['algorithm']!r} is not the drafter's")
    except (KeyError, IndexError, TypeError) as error:
        problems.append(f"speculators_config lacks {error}")
    return problems


def _as_trained(shape: DrafterShape, trained: DrafterShape | None) -> list[str]:
    if trained is None:
        return []
    return [
        f"{name} is {getattr(shape, name)!r}, but the drafter was trained with {value!r}"
        for name, value in trained
        if getattr(shape, name) != value
    ]


def _tensors(tensors: Mapping[str, Tensor], shape: DrafterShape) -> list[str]:
    """Names, shapes, dtypes and values, then the vocabulary map."""
    expected = expected_tensors(shape)
    problems = [f"tensor {name} is missing" for name in sorted(set(expected) - set(tensors))]
    problems += [
        f"tensor {name} does not belong here" for name in sorted(set(tensors) - set(expected))
    ]
    sound = True
    for name in sorted(set(expected) & set(tensors)):
        tensor, (size, kind) = tensors[name], expected[name]
        if tuple(tensor.shape) != size or tensor.dtype not in DTYPES[kind]:
            problems.append(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)},"
                f" but must be {kind} {list(size)}"
            )
            sound = False
        elif kind == "float" and not bool(torch.isfinite(tensor).all()):
            problems.append(f"tensor {name} holds NaN or infinity")
    if sound and "d2t" in tensors and "t2d" in tensors:
        problems += _vocabulary(tensors["d2t"], tensors["t2d"])
    return problems


def _vocabulary(d2t_D: Tensor, t2d_V: Tensor) -> list[str]:
    """d2t holds offsets (target id minus draft id) that ascend, and t2d marks the same tokens."""
    target_ids_D = d2t_D + torch.arange(len(d2t_D))
    if int(target_ids_D.min()) < 0 or int(target_ids_D.max()) >= len(t2d_V):
        return [
            f"d2t leads outside the vocabulary of {len(t2d_V)}: it must hold offsets (target id"
            " minus draft id), not target ids"
        ]
    if not bool((target_ids_D.diff() > 0).all()):
        return ["d2t: target ids (d2t[i] + i) must ascend without repetition"]
    marked = torch.zeros_like(t2d_V)
    marked[target_ids_D] = True
    if not torch.equal(marked, t2d_V):
        return [
            f"d2t and t2d disagree: {int((marked != t2d_V).sum())} tokens are in one map only"
            " (does d2t hold offsets, target id minus draft id?)"
        ]
    return []
