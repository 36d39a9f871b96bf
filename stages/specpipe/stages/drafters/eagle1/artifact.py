"""An EAGLE-1 artifact, as vLLM's method `eagle` reads it: a plain Llama config.

vLLM drops `fc.bias` without a word, and fails on a `lm_head.weight`: the head is the target's.
EAGLE-2 and HASS checkpoints have the same layout.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from specpipe.schemas.drafters.eagle1 import Eagle1Shape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE, EMBEDDING, LM_HEAD
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget, reading_config
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    TargetFacts,
    layer_settings,
    mismatches,
    missing_and_unknown,
)
from specpipe.stages.drafters.parts.artifact.final_layer import (
    declared_layers_of_target,
    known_final_layer,
    target_mismatches,
)
from specpipe.stages.drafters.parts.artifact.layer_config import (
    check_sizes,
    layer_values,
    own_names,
    rope_left_out,
    target_sizes,
)
from specpipe.stages.drafters.parts.artifact.layer_structure import declared_layers, too_short
from specpipe.stages.drafters.parts.artifact.layer_tensors import Sizes, decoder_layer_tensors
from specpipe.stages.drafters.parts.artifact.own_key import OWN, OwnKeyFormat, own_settings
from specpipe.stages.drafters.parts.artifact.speculators_config import REQUIRED_LAYER_KEYS
from specpipe.stages.drafters.parts.artifact.weights import TARGETS_TOLERANCE, float_weights
from specpipe.stages.drafters.parts.layer_shape import layer_problems
from specpipe.stages.drafters.parts.rope import rope_problems
from specpipe.stages.target.head.target_tensors import TargetTensors

ARCHITECTURE = "LlamaForCausalLM"
_LAYER_KEYS = REQUIRED_LAYER_KEYS - {"num_aux_hidden_states"}
_KEYS = _LAYER_KEYS | {"architectures", "torch_dtype", OWN}


class EagleFormat(OwnKeyFormat[Eagle1Shape]):
    """A plain Llama config; the target's number of layers stands in `specpipe`."""

    name = "eagle"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return True

    def config(self, drafter: Drafter[Eagle1Shape]) -> dict[str, Any]:
        settings = layer_settings(drafter.shape)
        return {
            "architectures": [ARCHITECTURE],
            **{name: settings[name] for name in settings if name in _LAYER_KEYS},
            "torch_dtype": drafter.dtype,
            **own_settings(drafter, target_layers=drafter.shape.aux_layers[0]),
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        return missing_and_unknown(CONFIG_FILE, config, _KEYS, _KEYS)

    def problems(
        self,
        config: Mapping[str, Any],
        shape: Eagle1Shape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        expected = [
            ("architectures", config["architectures"], [ARCHITECTURE]),
            ("model_type", config["model_type"], "llama"),
            ("attention_bias", config["attention_bias"], False),
            ("mlp_bias", config["mlp_bias"], False),
            ("tie_word_embeddings", config["tie_word_embeddings"], False),
        ]
        problems = mismatches(expected)
        if has_lm_head:
            problems.append("there is a lm_head.weight, on which vLLM fails: it is the target's")
        return problems + self.target_problems(config, target)


def recognises(files: ArtifactFiles) -> bool:
    """fc takes one state beside the token, and no layer norms it; ours say their target's layers,
    whatever became of fc."""
    fc, own = files.tensors.get("fc.weight"), files.config.get(OWN)
    is_normed = any(name.endswith("hidden_norm.weight") for name in files.tensors)
    is_plain = "speculators_model_type" not in files.config
    is_square = fc is not None and fc.ndim == 2 and fc.shape[1] == 2 * fc.shape[0]
    is_llama = files.config.get("architectures") == [ARCHITECTURE]
    is_ours = is_llama and isinstance(own, dict) and "target_layers" in own
    return is_plain and (is_square or is_ours) and not is_normed


def read(files: ArtifactFiles, target: OfTarget | None) -> Artifact:
    """Raises ConfigError where it is none for this target."""
    folder, config = files.folder, files.config
    tensors = own_names(folder, files.tensors)
    if "fc.bias" in tensors:
        if tensors["fc.bias"].any():
            raise ConfigError(
                f"artifact {folder} has a fc.bias, which vLLM drops without a word: what it would"
                " serve is another drafter"
            )
        del tensors["fc.bias"]  # of zeros
    if LM_HEAD in tensors:
        raise ConfigError(
            f"artifact {folder} has a {LM_HEAD}, on which vLLM fails: the head of EAGLE-1 is the"
            " target's; leave it out"
        )
    with reading_config(folder):
        vocab_size, width = target_sizes(folder, config, target)
        layers = known_final_layer(config, target)
        if layers is None:
            raise ConfigError(
                f"artifact {folder} does not say how many layers its target has; give --target"
            )
        shape = Eagle1Shape(
            target_hidden_size=width,
            vocab_size=vocab_size,
            draft_vocab_size=vocab_size,
            aux_layers=layers,
            **layer_values(folder, config),
        )
        left_out = rope_left_out(config)
    if shape.hidden_act != "silu" or shape.layer_type != "llama" or shape.sliding_window:
        raise ConfigError(f"artifact {folder}: its layers are not those of Llama")
    if problems := layer_problems(shape):
        raise ConfigError(f"artifact {folder}: {CONFIG_FILE}: {'; '.join(problems)}")
    check_sizes(folder, shape, tensors)
    return Artifact(folder, config, shape, tensors, layers, left_out)


def sizes(shape: Eagle1Shape, *, embedding: bool = False) -> Sizes:
    """Of the artifact's tensors, which are the model's parameters."""
    H = shape.hidden_size
    found: Sizes = {"fc.weight": (H, 2 * H)}
    for number in range(shape.num_layers):
        found |= decoder_layer_tensors(shape, number, width=H)
    del found["layers.0.input_layernorm.weight"]
    return found | ({EMBEDDING: (shape.vocab_size, H)} if embedding else {})


def artifact_tensors(
    shape: Eagle1Shape,
    model: Mapping[str, Tensor],
    target: TargetTensors,
    *,
    with_embedding: bool,
) -> dict[str, Tensor]:
    named = dict(model) | ({EMBEDDING: target.embedding_VH} if with_embedding else {})
    expected = sizes(shape, embedding=with_embedding)
    return {n: named[n].to(torch.bfloat16).contiguous() for n in expected if n in named}


def model_weights(artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
    """Raises ConfigError for an embedding that is not the target's."""
    weights = float_weights(artifact)
    own_VH = weights.pop(EMBEDDING, None)
    if own_VH is not None:
        target_VH = target.embedding_VH.float()
        same_size = own_VH.shape == target_VH.shape
        if not same_size or not (own_VH - target_VH).norm() < TARGETS_TOLERANCE * target_VH.norm():
            raise ConfigError(
                f"artifact {artifact.folder} has an embedding of its own; drafters are trained"
                " here on the target's"
            )
    return weights


def declared_shape(config: Mapping[str, Any]) -> Eagle1Shape:
    """Raises ValueError, TypeError or KeyError where a value has no sense."""
    return Eagle1Shape(
        target_hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        draft_vocab_size=config["vocab_size"],
        aux_layers=declared_layers_of_target(config),
        **declared_layers(config),
    )


def config_problems(shape: Eagle1Shape, target: TargetFacts) -> list[str]:
    problems = target_mismatches(shape, target)
    problems += layer_problems(shape) + rope_problems(shape.rope_parameters)
    return problems + too_short(shape, target)
