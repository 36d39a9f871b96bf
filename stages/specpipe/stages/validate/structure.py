"""Validation level `structure`: an engine would load these files as the drafter that was trained.

What an engine does not check is checked here: it takes a missing key for a default, a missing d2t
for the identity, and ids of other layers for the right ones, and then serves a drafter whose
guesses are rejected.

Legend: D draft vocabulary, V vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specpipe.schemas.errors import SpecpipeError
from specpipe.schemas.records.artifact import (
    CONFIG_FILE,
    EMBEDDING,
    LAYER_IDS,
    LAYER_TYPES,
    LM_HEAD,
    MODEL_TENSORS_FILE,
    SWITCHES,
    expected_tensors,
    layer_config,
    may_share_lm_head,
    needed_engine,
)
from specpipe.schemas.records.checkpoint import DrafterShape
from specpipe.schemas.records.validation import StructureFindings
from specpipe.stages.drafters.artifact_format import Format, TargetFacts
from specpipe.stages.drafters.eagle3.artifact import other_weights
from specpipe.stages.drafters.eagle3.shape import shape_problems
from specpipe.stages.drafters.formats import format_of
from specpipe.stages.drafters.parts.rope import FIXED_LENGTH, rope_problems
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.json_text import parse_object
from specpipe.stages.untrusted.tensors import load_tensors

DTYPES = {
    "float": (torch.bfloat16, torch.float16, torch.float32),
    "int64": (torch.int64,),
    "bool": (torch.bool,),
}


def check(
    folder: Path, target: TargetFacts, trained: DrafterShape | None = None
) -> StructureFindings:
    """Everything that is wrong with the artifact in `folder`; with `trained`, also every setting
    in which it differs from the drafter that was trained."""
    problems: list[str] = []
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] | None = None
    shape: DrafterShape | None = None
    try:
        tensors = load_tensors(folder / MODEL_TENSORS_FILE, MODEL_TENSORS_FILE)
    except SpecpipeError as error:
        why = other_weights(folder) or error
        problems.append(f"{MODEL_TENSORS_FILE} cannot be read: {why}")
    try:
        config = parse_object(read_file(folder / CONFIG_FILE), CONFIG_FILE)
    except SpecpipeError as error:
        problems.append(f"{CONFIG_FILE} cannot be read: {error}")
    if config is not None:
        format = format_of(config)
        missing = format.key_problems(config)
        problems += missing
        if not missing:
            shape = _shape(config, problems)
            if shape is not None:
                problems += _consistent(config, shape, target)
                problems += format.problems(config, shape, target, LM_HEAD in tensors)
                problems += _as_trained(shape, trained)
                if tensors:
                    problems += tensor_problems(tensors, shape, format)
    return StructureFindings(
        passed=not problems,
        num_tensors=len(tensors),
        num_parameters=sum(t.numel() for t in tensors.values() if t.is_floating_point()),
        problems=problems,
        engine=None if shape is None else needed_engine(shape),
    )


def _shape(config: Mapping[str, Any], problems: list[str]) -> DrafterShape | None:
    """The drafter that the config declares; None, and a problem, where a value has no sense."""
    layer = layer_config(config)
    size = config["draft_vocab_size"]
    try:
        return DrafterShape(
            layer_type=layer["model_type"],
            num_layers=layer["num_hidden_layers"],
            sliding_window=layer.get("sliding_window"),
            target_hidden_size=config["target_hidden_size"],
            aux_layers=tuple(config[LAYER_IDS]),
            draft_vocab_size=layer["vocab_size"] if size is None else size,
            **{key: config[key] for key in SWITCHES},
            **{key: layer[key] for key in _LAYER_KEYS},
        )
    except (ValueError, TypeError) as error:
        problems.append(f"{CONFIG_FILE}: {error}")
        return None


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
    layer = layer_config(config)
    ids = list(shape.aux_layers)
    outside = [k for k in ids if not 1 <= k <= target.num_layers]
    if not ids or outside or ids != sorted(set(ids)):
        problems.append(
            f"{LAYER_IDS} {ids} must ascend within 1..{target.num_layers}"
            " (id k is the residual stream that enters decoder layer k)"
        )
    expected: list[tuple[str, Any, Any]] = [
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
    if not 0 < shape.draft_vocab_size <= shape.vocab_size:
        problems.append(
            f"draft_vocab_size {shape.draft_vocab_size} is not in 1..{shape.vocab_size}"
        )
    if shape.norm_before_fc and shape.fc_norm:
        problems.append("norm_before_fc and fc_norm exclude each other")
    problems += shape_problems(shape) + rope_problems(shape.rope_parameters)
    return problems + _too_short(shape, target)


def _too_short(shape: DrafterShape, target: TargetFacts) -> list[str]:
    """A drafter that would shorten the texts that the server takes."""
    rope_type = shape.rope_parameters.get("rope_type")
    own, longest = shape.max_position_embeddings, target.max_position_embeddings
    if rope_type not in FIXED_LENGTH or longest is None or own >= longest:
        return []
    return [
        f"max_position_embeddings is {own}, but the target's is {longest}: with rope type"
        f" {rope_type!r} vLLM lowers the server's longest text to the drafter's"
    ]


def _as_trained(shape: DrafterShape, trained: DrafterShape | None) -> list[str]:
    if trained is None:
        return []
    return [
        f"{name} is {getattr(shape, name)!r}, but the drafter was trained with {value!r}"
        for name, value in trained
        if getattr(shape, name) != value
    ]


def tensor_problems(
    tensors: Mapping[str, Tensor], shape: DrafterShape, format: Format
) -> list[str]:
    """Names, shapes, dtypes and values, then the vocabulary map.

    The names are the format's. An embedding is allowed; a lm_head may be left to the target.
    """
    own = expected_tensors(
        shape,
        embedding=EMBEDDING in tensors,
        lm_head=LM_HEAD in tensors or not may_share_lm_head(shape),
    )
    expected = {format.stored_name(name): value for name, value in own.items()}
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
