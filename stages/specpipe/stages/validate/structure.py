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

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.errors import IntegrityError, SpecpipeError
from specpipe.schemas.records.artifact import CONFIG_FILE, EMBEDDING, LM_HEAD, MODEL_TENSORS_FILE
from specpipe.schemas.records.validation import StructureFindings
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.drafters.artifact import ArtifactFiles, other_weights, reading_config
from specpipe.stages.drafters.artifact_format import Format, TargetFacts
from specpipe.stages.drafters.reading import format_of
from specpipe.stages.drafters.registry import AnyArchitecture, drafter_kind, recognised
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
    kind = None
    if config is not None:
        try:
            kind = (
                drafter_kind(trained)
                if trained
                else recognised(ArtifactFiles(folder, config, tensors))
            )
        except SpecpipeError as error:
            problems.append(str(error))
    if config is not None and kind is not None:
        try:
            with reading_config(folder):
                shape = _check_config(kind, config, target, LM_HEAD in tensors, problems)
                problems += _as_trained(shape, trained)
                if tensors and shape is not None:
                    problems += tensor_problems(tensors, shape, format_of(kind, config))
        except SpecpipeError as error:
            problems.append(str(error))
    return StructureFindings(
        passed=not problems,
        num_tensors=len(tensors),
        num_parameters=sum(t.numel() for t in tensors.values() if t.is_floating_point()),
        problems=problems,
        engine=None if shape is None else drafter_kind(shape).needed_engine(shape),
    )


def _check_config(
    kind: AnyArchitecture,
    config: Mapping[str, Any],
    target: TargetFacts,
    has_lm_head: bool,
    problems: list[str],
) -> DrafterShape | None:
    """The drafter that the config declares, None where it lacks a key; what is wrong is added to
    `problems`."""
    format = format_of(kind, config)
    if missing := format.key_problems(config):
        problems += missing
        return None
    shape: DrafterShape = kind.declared_shape(config)
    problems += kind.config_problems(config, shape, target)
    problems += format.problems(config, shape, target, has_lm_head)
    if (stated := format.drafter(config)) is not None:
        _, _, tokens = stated
        if problem := shape.draft_tokens_problem(tokens):
            problems.append(problem)
    return shape


def _as_trained(shape: DrafterShape | None, trained: DrafterShape | None) -> list[str]:
    if trained is None or shape is None:
        return []
    return [
        f"{name} is {getattr(shape, name)!r}, but the drafter was trained with {value!r}"
        for name, value in trained
        if getattr(shape, name) != value
    ]


def tensor_problems(
    tensors: Mapping[str, Tensor], shape: DrafterShape, format: Format[Any] | None = None
) -> list[str]:
    """Names, shapes, dtypes and values, then the vocabulary map.

    The names are the format's, or ours without one. An embedding is allowed;
    a lm_head may be left to the target.
    """
    architecture = drafter_kind(shape)
    own = architecture.expected_tensors(
        shape,
        embedding=EMBEDDING in tensors,
        lm_head=LM_HEAD in tensors or not architecture.may_share_lm_head(shape),
    )
    stored = format.stored_name if format else str
    expected = {stored(name): value for name, value in own.items()}
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
        try:
            VocabMap.from_tensors(tensors)
        except IntegrityError as error:
            problems.append(str(error))
    return problems
