"""An EAGLE-3 artifact of whatever program, as it is on disk: its shape and its weights.

Ours and speculators' name their layers `layers.N`; SpecForge's, ModelOpt's and the paper's own have
one layer, named `midlayer` or `layers.0`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from specpipe.schemas.drafters.eagle3 import SWITCHES, Eagle3Shape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget, reading_config
from specpipe.stages.drafters.parts.artifact.layer_config import (
    check_sizes,
    layer_ids,
    layer_values,
    nested_config,
    own_names,
    rope_left_out,
    target_sizes,
)
from specpipe.stages.drafters.parts.eagle.config import known_layers
from specpipe.stages.drafters.parts.layer_shape import layer_problems


def recognises(files: ArtifactFiles) -> bool:
    """Whether it is EAGLE-3's: what says nothing else of itself, and takes auxiliary states."""
    kind = files.config.get("speculators_model_type", "eagle3")
    return kind == "eagle3" and "mask_hidden" not in files.tensors


def read(files: ArtifactFiles, target: OfTarget | None) -> Artifact:
    """Raises ConfigError where it is none for this target."""
    folder, config = files.folder, files.config
    tensors = own_names(folder, files.tensors)
    if _is_eagle_1(tensors):
        raise ConfigError(
            f"artifact {folder} is an EAGLE-1, EAGLE-2 or HASS drafter: fc takes one hidden state,"
            " and no layer norms it. Only EAGLE-3 is read here; vLLM serves this one as it is, by"
            " method eagle"
        )
    with reading_config(folder):
        ids = layer_ids(folder, config)
        shape = _shape(files, ids, target)
        left_out = rope_left_out(config)
    check_sizes(folder, shape, tensors)
    return Artifact(folder, config, shape, tensors, ids, left_out)


def _shape(
    files: ArtifactFiles, ids: tuple[int, ...] | None, target: OfTarget | None
) -> Eagle3Shape:
    folder, config = files.folder, files.config
    nested = nested_config(config)
    if not nested.get("use_aux_hidden_state", True):
        raise ConfigError(f"artifact {folder} is no EAGLE-3 drafter (it takes no auxiliary states)")
    if "speculators_model_type" in config and "norm_before_residual" not in config:
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE} does not say norm_before_residual; vLLM takes it for"
            " true, speculators for false: write down what was trained"
        )
    switches: dict[str, Any] = {
        name: config.get(name, nested.get(name, False)) for name in SWITCHES
    }
    vocab_size, width = target_sizes(folder, config, target)
    aux_layers = known_layers(folder, ids, target)
    shape = Eagle3Shape(
        target_hidden_size=width,
        vocab_size=vocab_size,
        draft_vocab_size=config.get("draft_vocab_size") or vocab_size,
        aux_layers=aux_layers,
        **layer_values(folder, config),
        **switches,
    )
    if shape.hidden_act != "silu":
        raise ConfigError(f"artifact {folder}: hidden_act {shape.hidden_act!r} is not silu")
    if problems := layer_problems(shape):
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {'; '.join(problems)}")
    return shape


def _is_eagle_1(tensors: Mapping[str, Tensor]) -> bool:
    fc = tensors.get("fc.weight")
    is_normed = any(name.endswith("hidden_norm.weight") for name in tensors)
    return fc is not None and fc.ndim == 2 and fc.shape[1] == 2 * fc.shape[0] and not is_normed
