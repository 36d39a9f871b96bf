"""Formats of artifacts: how a drafter is written to files, and how files are checked.

Every key that an engine may read is written out: engines disagree about the defaults, and a key
that is missing is not an error there but a drafter that guesses badly.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors.torch import save
from torch import Tensor

from specpipe.schemas.base import Frozen
from specpipe.schemas.drafters.base import DrafterShape, LayerShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE, MODEL_TENSORS_FILE

Stated = tuple[str, str, int]
"""Name and architecture of the target, and number of draft tokens."""

Shape = TypeVar("Shape", bound=DrafterShape)

DRAFT_TOKENS = 3
"""Number of draft tokens where the artifact does not say it."""


class TargetFacts(Frozen):
    """Facts of the target that the artifact must agree with."""

    architecture: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    max_position_embeddings: int | None = None
    """None where it is not known."""


@dataclass(frozen=True, slots=True)
class Drafter(Generic[Shape]):
    """All that a config says of a drafter, in whatever format."""

    shape: Shape
    target: str
    """Name of the target; empty where it is not known, which not every format allows."""
    target_architecture: str
    speculative_tokens: int
    dtype: str = "bfloat16"
    has_lm_head: bool = True
    """Whether the artifact has its own lm_head; else it shares the target's."""


def check_draft_tokens(shape: DrafterShape, number: int) -> None:
    """Raise ConfigError where the drafter cannot be served with so many draft tokens."""
    if problem := shape.draft_tokens_problem(number):
        raise ConfigError(problem)


def stated_drafter(target: object, architecture: object, tokens: object) -> Stated | None:
    """Name and architecture of the target and number of draft tokens, as a config says them; None
    where one of them is nothing of the kind."""
    if not (isinstance(target, str) and isinstance(architecture, str)):
        return None
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        return None
    return target, architecture, tokens


class Format(ABC, Generic[Shape]):
    """One layout of the artifact's two files."""

    name: str

    @abstractmethod
    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a config is written in it."""

    def inexpressible(self, shape: Shape) -> list[str]:
        """Properties of this drafter that the format cannot hold, in words."""
        return []

    @abstractmethod
    def config(self, drafter: Drafter[Shape]) -> dict[str, Any]:
        """The contents of `config.json`."""

    def stored_name(self, name: str) -> str:
        """The name of one of our tensors in the file."""
        return name

    @abstractmethod
    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        """Keys that are missing or unknown; without any, the other questions may be asked."""

    @abstractmethod
    def problems(
        self,
        config: Mapping[str, Any],
        shape: Shape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        """Contradictions of the format's own keys with the rest, or with the target."""

    @abstractmethod
    def drafter(self, config: Mapping[str, Any]) -> Stated | None:
        """Name and architecture of the target, and number of draft tokens; None if the config
        lacks them."""

    def write(self, folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write both files of the artifact into `folder`, which must exist."""
        stored = {self.stored_name(name): tensor for name, tensor in tensors.items()}
        (folder / MODEL_TENSORS_FILE).write_bytes(save(stored, metadata={"format": "pt"}))
        text = json.dumps(config, indent=2) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def layer_settings(shape: LayerShape) -> dict[str, Any]:
    """Settings of the drafter's layers, as every format names them.

    vLLM's drafter looks here for `num_aux_hidden_states`, and assumes 3 otherwise.
    """
    return {
        "model_type": shape.layer_type,
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "hidden_act": shape.hidden_act,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": shape.rope_parameters,
        "max_position_embeddings": shape.max_position_embeddings,
        "vocab_size": shape.vocab_size,
        "num_aux_hidden_states": shape.num_aux,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }


def missing_and_unknown(
    where: str, values: Mapping[str, Any], required: frozenset[str], allowed: frozenset[str]
) -> list[str]:
    """A line for each key that is missing in `values` or does not belong there."""
    return [
        *(
            f"{where}: key {key!r} is missing; an engine would assume a default for it"
            for key in sorted(required - set(values))
        ),
        *(
            f"{where}: key {key!r} is unknown; it belongs elsewhere or is misspelt"
            for key in sorted(set(values) - allowed)
        ),
    ]


def mismatches(expected: Iterable[tuple[str, Any, Any]]) -> list[str]:
    """A line for each value that is not the right one, of (name, value, right one)."""
    return [
        f"{name} is {value!r}, but must be {right!r}"
        for name, value, right in expected
        if value != right
    ]
