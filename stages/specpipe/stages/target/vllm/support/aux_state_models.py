"""vLLM's own models, with its interface for auxiliary hidden states added.

vLLM's models that have the interface collect, in the loop over their layers, what enters each of
the layers that are asked for. The same statements are put into the `forward` of the others here, so
that it may be compiled and captured in CUDA graphs as those of vLLM are; nothing else changes.
"""

import ast
import inspect
import textwrap
from importlib import import_module
from typing import Any

from specpipe.stages.target.vllm.support.aux_interface import (
    aux_states_interface,
    gives_aux_states,
)
from specpipe.stages.target.vllm.support.families import FAMILIES, Family


class NotOfThisForm(Exception):
    """A model whose `forward` is not the loop that we know."""


def register(architectures: list[str]) -> None:
    """Let vLLM load the classes of this module for these architectures."""
    from vllm.model_executor.models.registry import ModelRegistry

    for architecture in architectures:
        ModelRegistry.register_model(architecture, f"{__name__}:{architecture}")


def __getattr__(name: str) -> Any:
    """The class that `register` names, made when it is asked for."""
    if name not in FAMILIES:
        raise AttributeError(name)
    from vllm.model_executor.models.registry import _VLLM_MODELS

    family = FAMILIES[name]
    module = import_module(f"vllm.model_executor.models.{family.module}")
    own = getattr(module, _VLLM_MODELS[name][1])
    if gives_aux_states(own):
        return own
    # The model makes its decoder by this name, in its module.
    setattr(module, family.decoder, _with_states(module, family))
    made = type(own.__name__, (own, aux_states_interface()), {"__module__": __name__})
    globals()[name] = made
    return made


def _with_states(module: Any, family: Family) -> type:
    """The family's decoder, whose `forward` also returns what enters the layers asked for."""
    from vllm.model_executor.models.interfaces import EagleModelMixin

    own: type = getattr(module, family.decoder)
    if issubclass(own, EagleModelMixin):
        return own
    forward = collecting(own.forward, has_residual=family.has_residual)  # type: ignore[attr-defined]
    return type(own.__name__, (own, EagleModelMixin), {"forward": forward, "__module__": __name__})


def collecting(forward: Any, *, has_residual: bool) -> Any:
    """A decoder's `forward` that returns `hidden_states, aux_hidden_states` where layers are asked
    for.

    Raises NotOfThisForm where it is no loop over `islice(self.layers, ...)` with one
    `return hidden_states` at the end.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    loops = [at for at, node in enumerate(function.body) if _is_over_layers(node)]
    last = function.body[-1]
    is_known = isinstance(last, ast.Return) and ast.unparse(last) == "return hidden_states"
    if len(loops) != 1 or not is_known:
        raise NotOfThisForm(f"{forward.__qualname__} of {forward.__module__}")
    at = loops[0]
    loop: Any = function.body[at]
    collect = "self._maybe_add_hidden_state(aux_hidden_states, {}, hidden_states, {})"
    residual = "residual" if has_residual else "None"
    loop.body = [*_statements(collect.format("layer_id", residual)), *loop.body]
    loop.iter = ast.parse(f"enumerate({ast.unparse(loop.iter)}, self.start_layer)").body[0].value  # type: ignore[attr-defined]
    loop.target = ast.Tuple([ast.Name("layer_id", ast.Store()), loop.target], ast.Store())
    function.body[at + 1 : at + 1] = _statements(collect.format("self.end_layer", residual))
    function.body[at:at] = _statements("aux_hidden_states = []")
    function.body[-1:] = _statements(
        "return (hidden_states, aux_hidden_states) if aux_hidden_states else hidden_states"
    )
    function.decorator_list, function.returns = [], None
    # vLLM's compiler knows this name as one without a file.
    code = compile(ast.fix_missing_locations(tree), "<string>", "exec")
    made: dict[str, Any] = {}
    exec(code, forward.__globals__, made)
    return made[function.name]


def _is_over_layers(node: ast.stmt) -> bool:
    return isinstance(node, ast.For) and ast.unparse(node.iter).startswith("islice(self.layers, ")


def _statements(text: str) -> list[ast.stmt]:
    return ast.parse(text).body
