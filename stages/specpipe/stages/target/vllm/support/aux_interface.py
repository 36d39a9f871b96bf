"""vLLM's interface of models that give auxiliary hidden states, found by the method that it has.

Its name in vLLM is that of the first drafters that read them.
"""

from importlib import import_module
from typing import Any

SETTER = "set_aux_hidden_state_layers"
"""The interface's method that takes the layers."""


def aux_states_interface() -> Any:
    interfaces = import_module("vllm.model_executor.models.interfaces")
    (found,) = (
        value
        for value in vars(interfaces).values()
        if isinstance(value, type) and SETTER in vars(value)
    )
    return found


def gives_aux_states(model: Any) -> bool:
    """Whether a model of vLLM's, or a class of them, has the interface."""
    return isinstance(model, aux_states_interface())
