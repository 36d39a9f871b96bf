"""Medusa behind the contract."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from specpipe.schemas.drafters.medusa import MedusaSettings, MedusaShape
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.contract import Architecture, DrafterModel, Runtime, Serving
from specpipe.stages.drafters.medusa import artifact, tensors
from specpipe.stages.drafters.medusa.model import Medusa, initialise
from specpipe.stages.drafters.medusa.proposal import PlainMedusa
from specpipe.stages.drafters.parts.sizes import size_problems
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget, TargetTensors


class MedusaArchitecture(Architecture[MedusaShape]):
    name = "medusa"
    settings = MedusaSettings
    shape = MedusaShape
    serving = Serving(
        method="medusa",
        title="Medusa",
        reads="final_state",
        is_parallel=True,
        follows_schedule=False,
    )
    formats = MappingProxyType({artifact.MedusaFormat.name: artifact.MedusaFormat()})

    def make_shape(
        self,
        config: TrainConfig,
        target: PretrainedConfig,
        aux_layers: tuple[int, ...],
        vocab_size: int,
        draft_vocab_size: int,
    ) -> MedusaShape:
        assert isinstance(config.drafter, MedusaSettings)
        return MedusaShape(
            target_hidden_size=target.get_text_config(decoder=True).hidden_size,
            vocab_size=vocab_size,
            draft_vocab_size=vocab_size,
            aux_layers=aux_layers[-1:],
            num_heads=config.num_heads,
            num_layers=config.drafter.num_layers,
            block_bias=config.drafter.block_bias,
            own_lm_head=config.drafter.own_lm_head,
        )

    def stored_problems(self, shape: MedusaShape, weights: Mapping[str, Tensor]) -> list[str]:
        return size_problems(tensors.model_sizes(shape), weights)

    def build(
        self, shape: MedusaShape, target: TargetTensors, target_ids_D: Tensor, runtime: Runtime
    ) -> Medusa:
        return Medusa(shape, target)

    def initialise(
        self,
        model: DrafterModel,
        config: TrainConfig,
        dump: Dump,
        target: StoredTarget,
        target_ids_D: Tensor,
    ) -> None:
        assert isinstance(model, Medusa)
        initialise(model, target)

    def activation_numbers(self, shape: MedusaShape, num_tokens: int, num_heads: int) -> int:
        """N H (1 + K (1 + 2 layers)), with each token a start."""
        per_head = 1 + 2 * shape.num_layers
        return num_tokens * shape.target_hidden_size * (1 + num_heads * per_head)

    def recognises(self, files: ArtifactFiles) -> bool:
        return artifact.recognises(files)

    def read(self, files: ArtifactFiles, target: OfTarget | None) -> Artifact:
        return artifact.read(files, target)

    def expected_tensors(
        self, shape: MedusaShape, *, embedding: bool, lm_head: bool
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        return {name: (size, "float") for name, size in tensors.artifact_sizes(shape).items()}

    def artifact_tensors(
        self,
        shape: MedusaShape,
        model: Mapping[str, Tensor],
        vocab: Mapping[str, Tensor],
        target: TargetTensors,
        *,
        with_embedding: bool = False,
    ) -> dict[str, Tensor]:
        return tensors.artifact_tensors(shape, model, target)

    def model_weights(self, artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
        return tensors.model_weights(artifact, target)

    def may_share_lm_head(self, shape: MedusaShape) -> bool:
        return False

    def declared_shape(self, config: Mapping[str, Any]) -> MedusaShape:
        return artifact.declared_shape(config)

    def config_problems(
        self, config: Mapping[str, Any], shape: MedusaShape, target: TargetFacts
    ) -> list[str]:
        return artifact.config_problems(shape, target)

    def needed_engine(self, shape: MedusaShape) -> str | None:
        return (
            "vLLM up to 0.32, by its V1 model runner; vLLM 0.33 serves no Medusa, and no version"
            " samples its drafts"
        )

    def num_layers(self, shape: MedusaShape) -> int:
        return 0

    def proposal(self, folder: Path, target: TargetTensors) -> PlainMedusa:
        return PlainMedusa.load(folder, target.final_norm)


ARCHITECTURE = MedusaArchitecture()
