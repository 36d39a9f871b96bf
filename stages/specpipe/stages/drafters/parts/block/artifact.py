"""An artifact of a drafter of blocks as it is on disk, of whatever program: its shape."""

from typing import Any, TypeVar

from specpipe.schemas.drafters.block import BlockShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE, LM_HEAD
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget, reading_config
from specpipe.stages.drafters.parts.artifact.layer_config import (
    check_sizes,
    layer_config,
    layer_values,
    own_names,
    rope_left_out,
    target_sizes,
)
from specpipe.stages.drafters.parts.artifact.own_key import OWN
from specpipe.stages.drafters.parts.block.config import (
    layer_ids,
    mask_token_of,
    served_window,
    trained_causal,
    usual_rope,
)
from specpipe.stages.drafters.parts.layer_shape import layer_problems

Shape = TypeVar("Shape", bound=BlockShape)


def read(
    kind: type[Shape], files: ArtifactFiles, target: OfTarget | None, more: dict[str, Any]
) -> Artifact:
    """`more` are values of the shape's further fields.

    Raises ConfigError where it is no drafter for this target.
    """
    # A head that is left to the target is the target's, also where that ties it to its embedding.
    folder, config = files.folder, {**files.config, "tie_word_embeddings": False}
    tensors = own_names(folder, files.tensors)
    with reading_config(folder):
        shape = kind.model_validate(_values(files, target) | more)
        left_out = rope_left_out(config)
    if shape.hidden_act != "silu":
        raise ConfigError(f"artifact {folder}: hidden_act {shape.hidden_act!r} is not silu")
    if problems := layer_problems(shape):
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {'; '.join(problems)}")
    check_sizes(folder, shape, tensors)
    return Artifact(folder, config, shape, tensors, layer_ids(config), left_out)


def _values(files: ArtifactFiles, target: OfTarget | None) -> dict[str, Any]:
    folder, config = files.folder, files.config
    vocab_size, width = target_sizes(folder, config, target)
    aux_layers = layer_ids(config) or (target.aux_layers if target else None)
    if aux_layers is None:
        raise ConfigError(
            f"artifact {folder}: {CONFIG_FILE} names no auxiliary layers, and their default depends"
            " on the target; give --target"
        )
    if layer_config(config).get("model_type") != "qwen3":
        raise ConfigError(f"artifact {folder}: its layers are not those of Qwen3, as vLLM's are")
    own = config.get(OWN) or {}
    return {
        "target_hidden_size": width,
        "vocab_size": vocab_size,
        "draft_vocab_size": config.get("draft_vocab_size") or vocab_size,
        "aux_layers": aux_layers,
        **layer_values(folder, config),
        "sliding_window": served_window(config),
        **usual_rope(config),
        "causal": trained_causal(folder, config),
        "block_size": config["block_size"],
        "mask_token": mask_token_of(config),
        "own_lm_head": own.get("own_lm_head", LM_HEAD in files.tensors),
    }
