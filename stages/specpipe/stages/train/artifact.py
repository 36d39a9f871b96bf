"""An EAGLE-3 artifact of whatever program, to go on from: its shape, vocabulary and weights.

Ours and speculators' have their settings in `transformer_layer_config` and name their layers
`layers.N`; SpecForge's, ModelOpt's and the paper's own have them at the top, and one layer, named
`midlayer` or `layers.0`. Layer ids: `eagle_aux_hidden_state_layer_ids` at the top counts as we do;
inside `eagle_config` (SGLang's place) it names a layer's output by the layer, one less.

Legend: V target vocabulary, D draft vocabulary, H hidden size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError as PydanticError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig

from specpipe.schemas.artifact import CONFIG_FILE, LAYER_IDS, MODEL_TENSORS_FILE, SWITCHES
from specpipe.schemas.checkpoint import DrafterShape
from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafter.shape import check_shape

BUFFERS = ("rotary_emb.inv_freq",)
"""Ends of names that hold what the config says anyway."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact as it is on disk, under our names."""

    folder: Path
    shape: DrafterShape
    tensors: dict[str, Tensor]
    layer_ids: tuple[int, ...] | None
    """As its config says; None where it says nothing."""


def read_artifact(
    location: str, aux_layers: tuple[int, ...], vocab_size: int, target_hidden_size: int
) -> Artifact:
    """The artifact in a local folder; raises ConfigError where it is none for this target.

    `aux_layers` are the ids that it is taken to want where its config does not say.
    """
    folder = Path(location).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"artifact {folder}: there is no {CONFIG_FILE} in it; is it an artifact?")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / MODEL_TENSORS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"artifact {folder} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE} holds no JSON object")
    layer_ids = _layer_ids(config)
    shape = _shape(folder, config, layer_ids or aux_layers, vocab_size, target_hidden_size)
    return Artifact(folder, shape, _our_names(tensors), layer_ids)


def _layer_ids(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    if ids := config.get(LAYER_IDS):
        return tuple(ids)
    if ids := (config.get("eagle_config") or {}).get(LAYER_IDS):
        return tuple(layer + 1 for layer in ids)
    return None


def _shape(
    folder: Path,
    config: Mapping[str, Any],
    aux_layers: tuple[int, ...],
    vocab_size: int,
    target_hidden_size: int,
) -> DrafterShape:
    layer = config.get("transformer_layer_config", config)
    nested = config.get("eagle_config") or {}
    switches = {name: config.get(name, nested.get(name, False)) for name in SWITCHES}
    declared_vocab = layer.get("vocab_size", vocab_size)
    declared_width = config.get("target_hidden_size") or layer.get("hidden_size")
    if (declared_vocab, declared_width) != (vocab_size, target_hidden_size):
        raise ConfigError(
            f"artifact {folder} is for a target with a vocabulary of {declared_vocab} and"
            f" {declared_width} wide states, not for this one with {vocab_size} and"
            f" {target_hidden_size}"
        )
    try:
        heads = layer["num_attention_heads"]
        shape = DrafterShape(
            layer_type="qwen3" if layer.get("model_type") == "qwen3" else "llama",
            num_layers=layer.get("num_hidden_layers", 1),
            sliding_window=layer.get("sliding_window") if layer.get("layer_types") else None,
            hidden_size=layer["hidden_size"],
            target_hidden_size=target_hidden_size,
            intermediate_size=layer["intermediate_size"],
            num_attention_heads=heads,
            num_key_value_heads=layer.get("num_key_value_heads", heads),
            head_dim=layer.get("head_dim") or layer["hidden_size"] // heads,
            rms_norm_eps=layer.get("rms_norm_eps", 1e-6),
            hidden_act=layer.get("hidden_act", "silu"),
            rope_parameters=_rope(layer),
            max_position_embeddings=layer["max_position_embeddings"],
            vocab_size=vocab_size,
            draft_vocab_size=config.get("draft_vocab_size") or vocab_size,
            aux_layers=aux_layers,
            **switches,
        )
    except KeyError as error:
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE} does not say {error}") from None
    except PydanticError as error:
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {error}") from None
    if shape.hidden_act != "silu":
        raise ConfigError(f"artifact {folder}: hidden_act {shape.hidden_act!r} is not silu")
    check_shape(shape)
    return shape


def _rope(layer: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' rope_parameters, also from the older rope_theta and rope_scaling."""
    keys = ("rope_parameters", "rope_theta", "rope_scaling")
    given = {key: layer[key] for key in keys if layer.get(key) is not None}
    rope: dict[str, Any] = LlamaConfig(**given).to_dict()["rope_parameters"]
    return rope


def _our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("model.").replace("midlayer.", "layers.0.", 1): tensor
        for name, tensor in tensors.items()
        if not name.endswith(BUFFERS)
    }
