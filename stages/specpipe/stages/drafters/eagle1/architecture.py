"""EAGLE-1 behind the contract."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from specpipe.schemas.drafters.eagle1 import Eagle1Settings, Eagle1Shape
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.contract import DrafterModel, Runtime, Serving
from specpipe.stages.drafters.eagle1 import artifact
from specpipe.stages.drafters.eagle1.model import Eagle1
from specpipe.stages.drafters.eagle1.proposal import PlainEagle1
from specpipe.stages.drafters.parts.layer_shape import fresh_shape
from specpipe.stages.drafters.parts.layered import LayerArchitecture
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget, TargetTensors


class Eagle1Architecture(LayerArchitecture[Eagle1Shape]):
    name = "eagle1"
    settings = Eagle1Settings
    shape = Eagle1Shape
    serving = Serving(method="eagle", title="EAGLE-1", reads="final_state")
    formats = MappingProxyType({artifact.EagleFormat.name: artifact.EagleFormat()})

    def make_shape(
        self,
        config: TrainConfig,
        target: PretrainedConfig,
        aux_layers: tuple[int, ...],
        vocab_size: int,
        draft_vocab_size: int,
    ) -> Eagle1Shape:
        assert isinstance(config.drafter, Eagle1Settings)
        further = {
            "vocab_size": vocab_size,
            "draft_vocab_size": vocab_size,
            "aux_layers": aux_layers[-1:],
        }
        return fresh_shape(Eagle1Shape, target, config.drafter, further)

    def build(
        self, shape: Eagle1Shape, target: TargetTensors, target_ids_D: Tensor, runtime: Runtime
    ) -> Eagle1:
        return Eagle1(shape, target, runtime)

    @torch.no_grad()
    def initialise(
        self,
        model: DrafterModel,
        config: TrainConfig,
        dump: Dump,
        target: StoredTarget,
        target_ids_D: Tensor,
    ) -> None:
        """The state is handed on as it is: the lm_head then says what the target says next."""
        assert isinstance(model, Eagle1)
        nn.init.eye_(model.fc.weight[:, model.shape.hidden_size :])

    def activation_numbers(self, shape: Eagle1Shape, num_tokens: int, num_heads: int) -> int:
        """N (2 H + K (H + n (5 H + 2 I + 2 q + 2 g))), with each token a start."""
        H, queries = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        per_layer = 5 * H + 2 * shape.intermediate_size + 2 * queries + 2 * keys
        return num_tokens * (2 * H + num_heads * (H + shape.num_layers * per_layer))

    def recognises(self, files: ArtifactFiles) -> bool:
        return artifact.recognises(files)

    def read(self, files: ArtifactFiles, target: OfTarget | None) -> Artifact:
        return artifact.read(files, target)

    def expected_tensors(
        self, shape: Eagle1Shape, *, embedding: bool, lm_head: bool
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        sizes = artifact.sizes(shape, embedding=embedding)
        return {name: (size, "float") for name, size in sizes.items()}

    def artifact_tensors(
        self,
        shape: Eagle1Shape,
        model: Mapping[str, Tensor],
        vocab: Mapping[str, Tensor],
        target: TargetTensors,
        *,
        with_embedding: bool = False,
    ) -> dict[str, Tensor]:
        return artifact.artifact_tensors(shape, model, target, with_embedding=with_embedding)

    def model_weights(self, of: Artifact, target: TargetTensors) -> dict[str, Tensor]:
        return artifact.model_weights(of, target)

    def may_share_lm_head(self, shape: Eagle1Shape) -> bool:
        return True

    def declared_shape(self, config: Mapping[str, Any]) -> Eagle1Shape:
        return artifact.declared_shape(config)

    def config_problems(
        self, config: Mapping[str, Any], shape: Eagle1Shape, target: TargetFacts
    ) -> list[str]:
        return artifact.config_problems(shape, target)

    def proposal(self, folder: Path, target: TargetTensors) -> PlainEagle1:
        return PlainEagle1.of(folder, target)


ARCHITECTURE = Eagle1Architecture()
