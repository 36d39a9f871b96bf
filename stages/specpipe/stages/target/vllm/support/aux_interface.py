"""vLLM's interface of models that give auxiliary hidden states, found by the method that it has.

Its name in vLLM is that of the first drafters that read them.
"""

from importlib import import_module
from typing import Any

SETTER = "set_aux_hidden_state_layers"
"""The interface's method that takes the layers."""

FOR_MTP_ALONE = frozenset({"MiMoForCausalLM"})
"""Models of vLLM whose loop over the layers serves MTP alone. They inherit the interface, but
collect nothing: an engine that asks them for states dies. And what they hand a drafter of the final
state is the state before the final norm, which it was not trained on."""


def aux_states_interface() -> Any:
    interfaces = import_module("vllm.model_executor.models.interfaces")
    (found,) = (
        value
        for value in vars(interfaces).values()
        if isinstance(value, type) and SETTER in vars(value)
    )
    return found


def gives_aux_states(model: Any) -> bool:
    """Whether a model of vLLM's, or a class of them, has the interface, and what it gives
    are the states."""
    own = model if isinstance(model, type) else type(model)
    return own.__name__ not in FOR_MTP_ALONE and isinstance(model, aux_states_interface())
