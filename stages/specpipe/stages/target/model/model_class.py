"""Which of transformers' classes a target is, and what of a model with images is left for text."""

from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from specpipe.stages.target.model.decoder import Decoder


def auto_class(config: PreTrainedConfig) -> Any:
    """What builds or loads a model of this config: a causal language model where transformers has
    one, else the wrapper around a vision tower and a text decoder (Mistral Small 3, Qwen-VL)."""
    is_wrapper = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if is_wrapper and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def is_wrapper(model: PreTrainedModel) -> bool:
    """Whether the text decoder is one part of the model among others."""
    return model.config.get_text_config(decoder=True) is not model.config


def place_of_decoder(model: PreTrainedModel, decoder: Decoder, lm_head_path: str) -> str:
    """The module that maps token ids to what the lm_head takes: in a wrapper the outermost one
    beside the lm_head, which may do more to its inputs than the decoder."""
    parts = decoder.path.split(".")
    if is_wrapper(model):
        for depth in range(1, len(parts)):
            outer = ".".join(parts[:depth])
            if not lm_head_path.startswith(f"{outer}."):
                return outer
    return decoder.path


def drop_other_weights(model: PreTrainedModel, decoder: Decoder) -> None:
    """Forget the weights of what stands beside the text decoder in a wrapper: images are never
    given, and the weights would take the device's memory. The modules stay, for what is read of
    them."""
    if not is_wrapper(model) or getattr(model.config, "quantization_config", None) is not None:
        return  # what unpacks quantised weights goes through all modules
    used = {decoder.module, model.get_input_embeddings(), model.get_output_embeddings()}
    outer: nn.Module = model
    for part in decoder.path.split("."):
        for name, child in outer.named_children():
            if name != part and used.isdisjoint(child.modules()):
                _forget(child)
        outer = outer.get_submodule(part)


def _forget(part: nn.Module) -> None:
    for module in part.modules():
        for name in [name for name, _ in module.named_parameters(recurse=False)]:
            setattr(module, name, None)
