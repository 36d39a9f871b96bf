"""The parts of a transformers causal language model that specpipe needs, found by their role.

Legend: B samples, T tokens, h one head for all, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specpipe.schemas.errors import ConfigError

_STREAMS = ("altup_num_inputs", "hc_mult")
"""How configs (Gemma 3n, DeepSeek V4) name the number of residual streams."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """The stack of decoder layers with its final norm, inside a causal language model."""

    module: nn.Module
    """What maps token ids to normed final states."""
    path: str
    """Name of `module` inside the model."""
    layers: nn.ModuleList
    norm: nn.Module

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def entry(self, layer: int) -> nn.Module:
        """The module that layer id `layer` enters: decoder layer k, or the final norm for id n."""
        return self.norm if layer == self.num_layers else self.layers[layer]


def find_decoder(model: PreTrainedModel) -> Decoder:
    """Raises ConfigError where the layers or the final norm cannot be told from the rest."""
    config = model.config.get_text_config(decoder=True)
    if streams := [key for key in _STREAMS if (getattr(config, key, None) or 1) > 1]:
        raise ConfigError(
            f"{type(model).__name__} is not supported: {getattr(config, streams[0])} residual "
            f"streams run beside each other through its layers ({streams[0]}), and a drafter takes "
            "one"
        )
    num_layers = config.num_hidden_layers
    module = _with_stack(_innermost(model), num_layers)
    stacks = _stacks(module, num_layers)
    if len(stacks) != 1:
        raise _unknown(model, f"no single list of {num_layers} layers", module)
    path = next(name for name, child in model.named_modules() if child is module)
    layers: Any = module.get_submodule(stacks[0])
    return Decoder(module, path, layers, _final_norm(model, module, stacks[0]))


def _innermost(model: PreTrainedModel) -> nn.Module:
    """What transformers calls the decoder, also where it is inside another one."""
    module: Any = model
    while hasattr(module, "get_decoder") and (inner := module.get_decoder()) is not module:
        module = inner
    return module  # type: ignore[no-any-return]


def _with_stack(module: nn.Module, num_layers: int) -> nn.Module:
    """The outermost module of `module` that has the layers as a child; itself where none has."""
    inside = (child for child in module.modules() if _stacks(child, num_layers))
    return next(inside, module)


def _stacks(module: nn.Module, num_layers: int) -> list[str]:
    """Names of the lists of `num_layers` layers; a layer has parts of its own."""
    return [
        name
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
        and len(child) == num_layers
        and all(any(layer.children()) for layer in child)
    ]


def _final_norm(model: PreTrainedModel, module: nn.Module, stack: str) -> nn.Module:
    names = [name for name, _ in module.named_children()]
    norms = [
        name for name, child in module.named_children() if "norm" in type(child).__name__.lower()
    ]
    # A norm of the embeddings stands before the layers, the final norm nearly always after them.
    found = [name for name in norms if names.index(name) > names.index(stack)] or norms
    if len(found) > 1:
        found = _returned(module, stack, found)
    if not found:
        raise _unknown(model, "no norm after its layers", module)
    if len(found) > 1:
        raise _unknown(model, f"final norm ambiguous among {found}", module)
    return module.get_submodule(found[0])


@torch.no_grad()
def _returned(module: nn.Module, stack: str, norms: list[str]) -> list[str]:
    """The norms whose output is what the module returns, tried on two tokens; all of them where
    it cannot be tried. The layers pass on what they are given."""
    made: dict[str, Any] = {}

    def note(name: str) -> Any:
        return lambda _, __, output: made.update({name: output})

    hooks = [module.get_submodule(name).register_forward_hook(note(name)) for name in norms]
    device = next(module.parameters()).device
    ids_BT = torch.zeros(1, 2, dtype=torch.int64, device=device)
    # A mask in its last form is taken as it is: to make one needs values, which meta tensors lack.
    mask_BhTT = torch.zeros(1, 1, 2, 2, device=device)
    try:
        with _passing_on(module.get_submodule(stack)):
            last: Any = module(input_ids=ids_BT, attention_mask=mask_BhTT, use_cache=False)
    except Exception:  # whatever an architecture needs that is not there
        return norms
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, output in made.items() if output is last.last_hidden_state]


@contextmanager
def _passing_on(layers: nn.Module) -> Iterator[None]:
    """Within, each layer's output is its input."""

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    changed: list[Any] = list(layers.children())
    for layer in changed:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _unknown(model: PreTrainedModel, what: str, module: nn.Module) -> ConfigError:
    parts = ", ".join(name for name, _ in module.named_children())
    return ConfigError(f"{type(model).__name__} is not supported: {what}; its decoder: {parts}")
