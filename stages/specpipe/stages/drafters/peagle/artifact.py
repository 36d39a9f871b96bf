"""A P-EAGLE artifact of whatever program, as it is on disk: its shape and its weights."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget, reading_config
from specpipe.stages.drafters.parts.artifact.layer_config import (
    check_sizes,
    layer_ids,
    layer_values,
    own_name,
    own_names,
    rope_left_out,
    target_sizes,
)
from specpipe.stages.drafters.parts.eagle.config import known_layers
from specpipe.stages.drafters.parts.layer_shape import layer_problems
from specpipe.stages.drafters.peagle.layout import MASK_HIDDEN, SWITCHES

MASK_TOKEN_KEYS = ("mask_token_id", "pard_token", "ptd_token_id")
"""Where vLLM looks for the mask token, in this order."""


def recognises(files: ArtifactFiles) -> bool:
    """Whether it is P-EAGLE's: what says so, and what has a hidden state for masked rows."""
    named = {own_name(name) for name in files.tensors}
    return files.config.get("speculators_model_type") == "peagle" or (
        MASK_HIDDEN in named and files.config.get("speculators_model_type", "eagle3") == "eagle3"
    )


def read(files: ArtifactFiles, target: OfTarget | None) -> Artifact:
    """Raises ConfigError where it is none for this target."""
    folder, config = files.folder, files.config
    tensors = own_names(folder, files.tensors)
    if MASK_HIDDEN not in tensors:
        raise ConfigError(
            f"artifact {folder} lacks {MASK_HIDDEN}, the state of drafts that are not there yet:"
            " vLLM does not load a drafter peagle without it"
        )
    with reading_config(folder):
        ids = layer_ids(folder, config)
        shape = _shape(files, ids, target)
        left_out = rope_left_out(config)
    check_sizes(folder, shape, tensors)
    tensors[MASK_HIDDEN] = tensors[MASK_HIDDEN].reshape(1, 1, -1)
    return Artifact(folder, config, shape, tensors, ids, left_out)


def _shape(
    files: ArtifactFiles, ids: tuple[int, ...] | None, target: OfTarget | None
) -> PeagleShape:
    folder, config = files.folder, files.config
    if config.get("fc_norm"):
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE} says fc_norm, which vLLM passes over in a drafter"
            " peagle"
        )
    vocab_size, width = target_sizes(folder, config, target)
    aux_layers = known_layers(folder, ids, target)
    switches: dict[str, Any] = {name: config.get(name, False) for name in SWITCHES}
    shape = PeagleShape(
        target_hidden_size=width,
        vocab_size=vocab_size,
        draft_vocab_size=config.get("draft_vocab_size") or vocab_size,
        aux_layers=aux_layers,
        mask_token=mask_token(config),
        **layer_values(folder, config),
        **switches,
    )
    problems = [*layer_problems(shape), *shape_problems(shape)]
    if shape.hidden_act != "silu":
        problems.append(f"hidden_act {shape.hidden_act!r} is not silu")
    if problems:
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {'; '.join(problems)}")
    return shape


def mask_token(config: Mapping[str, Any]) -> int:
    """Raises KeyError where a config does not name it."""
    found = [config[key] for key in MASK_TOKEN_KEYS if config.get(key) is not None]
    if not found:
        raise KeyError(MASK_TOKEN_KEYS[0])
    return int(found[0])


def shape_problems(shape: PeagleShape) -> list[str]:
    """What of a shape no P-EAGLE drafter has, in words."""
    problems = []
    if shape.hidden_size != shape.target_hidden_size:
        problems.append(
            f"hidden_size is {shape.hidden_size}, the target's {shape.target_hidden_size}: a"
            " drafter peagle is as wide as its target"
        )
    if not 0 <= shape.mask_token < shape.vocab_size:
        problems.append(f"mask token {shape.mask_token} is not in 0..{shape.vocab_size - 1}")
    return problems
