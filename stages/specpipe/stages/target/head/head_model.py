"""A target without decoder layers, from which its head is saved if another engine runs it."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.files.location import local_folder
from specpipe.stages.target.model.building import MODEL_BUILDING
from specpipe.stages.target.model.causal_lm import load_causal_lm
from specpipe.stages.target.model.decoder import find_decoder
from specpipe.stages.target.model.model_class import auto_class
from specpipe.stages.untrusted.foreign import foreign_call

_PER_LAYER = ("layer_types", "mlp_layer_types")
"""Lists in the config with an entry for each layer."""


def load_head_model(config: DumpConfig, dtype: str) -> PreTrainedModel:
    """Embedding, final norm and lm_head, in the architecture's own modules, on the CPU.

    The other weights are not read. Raises ConfigError where transformers cannot load it,
    IntegrityError where the checkpoint lacks one of the three.
    """
    folder = local_folder(config.target, config.revision, with_code=config.trust_remote_code)
    model_config = _without_layers(folder, trust_remote_code=config.trust_remote_code)
    return load_causal_lm(config, getattr(torch, dtype), model_config)


def head_numbers(folder: Path, *, trust_remote_code: bool = False) -> int:
    """How many numbers `save_head` stores of the target whose config is in a folder.

    Nothing else of it is read. Raises ConfigError where transformers cannot build it.
    """
    config = _without_layers(folder, trust_remote_code=trust_remote_code)
    with foreign_call(f"target {folder}: transformers cannot build its head", ConfigError):
        with MODEL_BUILDING, torch.device("meta"), warnings.catch_warnings():
            # What is sized by the number of layers (Gemma 4's per-layer input) has no elements.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            model: Any = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
        embedding, lm_head = model.get_input_embeddings(), model.get_output_embeddings()
        norm = find_decoder(model).norm
        tensors = [embedding.weight, *norm.state_dict().values()]
        if lm_head.weight is not embedding.weight:
            tensors.append(lm_head.weight)
        if getattr(lm_head, "bias", None) is not None:
            tensors.append(lm_head.bias)
    return sum(tensor.numel() for tensor in tensors)


def _without_layers(folder: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The target's config with no decoder layers, so that nothing but the head is left."""
    model_config = load_config(folder, trust_remote_code=trust_remote_code)
    text_config = model_config.get_text_config(decoder=True)
    text_config.num_hidden_layers = 0
    for name in _PER_LAYER:
        if getattr(text_config, name, None):
            setattr(text_config, name, [])
    # The head is not quantised; the layers are left out.
    if getattr(model_config, "quantization_config", None) is not None:
        del model_config.quantization_config
    return model_config
