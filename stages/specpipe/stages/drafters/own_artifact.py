"""Artifacts of an architecture that no engine knows: its shape as config, its weights as they are.

With it a new architecture can be trained, exported, replayed and reported before anybody serves it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    Format,
    Stated,
    TargetFacts,
    missing_and_unknown,
    stated_drafter,
)
from specpipe.stages.drafters.contract import Architecture, Runtime
from specpipe.stages.drafters.parts.artifact.layer_tensors import map_tensors
from specpipe.stages.drafters.parts.artifact.weights import float_weights
from specpipe.stages.target.head.target_tensors import NoTensors, TargetTensors

_KEYS = frozenset({"drafter", "target", "target_architecture", "speculative_tokens"})

Shape = TypeVar("Shape", bound=DrafterShape)


class OwnFormat(Format[DrafterShape]):
    """config.json holds the drafter's shape, its target and the number of draft tokens."""

    name = "specpipe"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return "drafter" in config

    def config(self, drafter: Drafter[DrafterShape]) -> dict[str, Any]:
        return {
            "drafter": drafter.shape.model_dump(mode="json"),
            "target": drafter.target,
            "target_architecture": drafter.target_architecture,
            "speculative_tokens": drafter.speculative_tokens,
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        return missing_and_unknown(CONFIG_FILE, config, _KEYS, _KEYS)

    def problems(
        self,
        config: Mapping[str, Any],
        shape: DrafterShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        architecture = config["target_architecture"]
        if architecture == target.architecture:
            return []
        return [f"target_architecture {architecture!r} is not {target.architecture!r}"]

    def drafter(self, config: Mapping[str, Any]) -> Stated | None:
        return stated_drafter(
            config["target"], config["target_architecture"], config["speculative_tokens"]
        )


class OwnArtifact(Architecture[Shape]):
    """The methods of an architecture that concern artifacts, for artifacts of this format."""

    formats: Mapping[str, Format[Any]] = MappingProxyType({OwnFormat.name: OwnFormat()})

    def stored_problems(self, shape: Shape, weights: Mapping[str, Tensor]) -> list[str]:
        return []

    def recognises(self, files: ArtifactFiles) -> bool:
        shape = files.config.get("drafter")
        return isinstance(shape, dict) and shape.get("architecture") == self.name

    def read(self, files: ArtifactFiles, target: OfTarget | None) -> Artifact:
        shape = self.declared_shape(files.config)
        return Artifact(files.folder, files.config, shape, dict(files.tensors), shape.aux_layers)

    def expected_tensors(
        self, shape: Shape, *, embedding: bool, lm_head: bool
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        target = NoTensors(shape.vocab_size, shape.target_hidden_size)
        with torch.device("meta"):
            model = self.build(shape, target, torch.arange(shape.draft_vocab_size), Runtime())
        own = {name: (tuple(t.shape), "float") for name, t in model.state_dict().items()}
        return own | map_tensors(shape)

    def artifact_tensors(
        self,
        shape: Shape,
        model: Mapping[str, Tensor],
        vocab: Mapping[str, Tensor],
        target: TargetTensors,
        *,
        with_embedding: bool = False,
    ) -> dict[str, Tensor]:
        own = {name: t.to(torch.bfloat16).contiguous() for name, t in model.items()}
        return own | {name: vocab[name] for name in map_tensors(shape)}

    def model_weights(self, artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
        return float_weights(artifact)

    def may_share_lm_head(self, shape: Shape) -> bool:
        return False

    def declared_shape(self, config: Mapping[str, Any]) -> Shape:
        return self.shape.model_validate(config["drafter"])

    def config_problems(
        self, config: Mapping[str, Any], shape: Shape, target: TargetFacts
    ) -> list[str]:
        pairs = (
            ("vocab_size", shape.vocab_size, target.vocab_size),
            ("target_hidden_size", shape.target_hidden_size, target.hidden_size),
        )
        return [f"{n} is {own!r}, but must be {its!r}" for n, own, its in pairs if own != its]
