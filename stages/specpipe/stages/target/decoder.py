"""The parts of a transformers causal language model that specpipe needs, found by their role."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from specpipe.schemas.errors import ConfigError


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
    module: nn.Module = model.get_decoder()
    path = next(name for name, child in model.named_modules() if child is module)
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    names = [name for name, _ in module.named_children()]
    stacks = [
        (name, child)
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == num_layers
    ]
    if len(stacks) != 1:
        raise _unknown(model, f"no single list of {num_layers} layers", names)
    stack_name, layers = stacks[0]
    norms = [
        name for name, child in module.named_children() if "norm" in type(child).__name__.lower()
    ]
    # A norm of the embeddings stands before the layers, the final norm nearly always after them.
    after = [name for name in norms if names.index(name) > names.index(stack_name)]
    found = after or norms
    if len(found) != 1:
        raise _unknown(model, f"final norm ambiguous among {found}", names)
    return Decoder(module, path, layers, module.get_submodule(found[0]))


def _unknown(model: PreTrainedModel, what: str, names: list[str]) -> ConfigError:
    parts = ", ".join(names)
    return ConfigError(f"{type(model).__name__} is not supported: {what}; its decoder: {parts}")
