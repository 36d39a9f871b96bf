"""Architectures that vLLM runs, but out of which it gives no hidden states: hooks get them.

Each model here is vLLM's own with `SupportsEagle3`, vLLM's interface for auxiliary hidden states,
added to it. What enters a decoder layer, or the final norm, is the sum of the layer's two inputs
`hidden_states` and `residual`.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

HOOKED = {
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "MixtralForCausalLM": "mixtral",
    "OlmoeForCausalLM": "olmoe",
}
"""Class by module of vllm.model_executor.models. Hooks do not run in compiled models, so these
run in eager mode."""


def register() -> None:
    """Let vLLM load the classes of this module for these architectures, where it has none that
    give hidden states of their own."""
    from vllm.model_executor.models.registry import ModelRegistry

    for architecture in HOOKED:
        ModelRegistry.register_model(architecture, f"{__name__}:{architecture}")


def __getattr__(name: str) -> Any:
    """The class that `register` names, made when it is asked for."""
    if name not in HOOKED:
        raise AttributeError(name)
    from vllm.model_executor.models.interfaces import SupportsEagle3, supports_eagle3

    module = import_module(f"vllm.model_executor.models.{HOOKED[name]}")
    own = getattr(module, name)
    if supports_eagle3(own):
        return own
    made = type(name, (_Hooked, own, SupportsEagle3), {"__module__": __name__})
    globals()[name] = made
    return made


class _Hooked:
    """Beside one of vLLM's models, whose `model` has `layers` and `norm`."""

    model: Any
    _caught: dict[int, Tensor]
    _wanted: tuple[int, ...] = ()

    def set_aux_hidden_state_layers(self, layers: tuple[int, ...]) -> None:
        """Catch what enters these layers, in vLLM's numbering: id k enters decoder layer k."""
        self._wanted, self._caught = layers, {}
        stack = self.model.layers
        for layer in layers:
            module = self.model.norm if layer == len(stack) else stack[layer]
            module.register_forward_pre_hook(self._catch(layer), with_kwargs=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = super().forward(*args, **kwargs)  # type: ignore[misc]
        if not self._wanted:
            return hidden
        caught = [self._caught[layer] for layer in self._wanted]
        self._caught.clear()
        return hidden, caught

    def _catch(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # (positions, hidden_states, residual) of a layer, (hidden_states, residual) of a norm.
            inputs = [value for value in (*args, *kwargs.values()) if _is_float(value)]
            self._caught[layer] = inputs[0] + inputs[1] if len(inputs) > 1 else inputs[0]

        return hook


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
