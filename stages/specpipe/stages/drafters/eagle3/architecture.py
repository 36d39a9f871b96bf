"""EAGLE-3 behind the contract."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from specpipe.schemas.drafters.eagle3 import Eagle3Settings, Eagle3Shape
from specpipe.schemas.records.artifact import EMBEDDING
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import Format, TargetFacts
from specpipe.stages.drafters.contract import DrafterModel, Runtime, Serving
from specpipe.stages.drafters.eagle3 import artifact, layout, structure, tensors
from specpipe.stages.drafters.eagle3.formats.flat import FlatFormat
from specpipe.stages.drafters.eagle3.formats.speculators import Speculators
from specpipe.stages.drafters.eagle3.model import Eagle3
from specpipe.stages.drafters.eagle3.proposal import PlainDrafter
from specpipe.stages.drafters.eagle3.shape import drafter_shape
from specpipe.stages.drafters.eagle3.start import initialise
from specpipe.stages.drafters.parts.layered import LayerArchitecture
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget, TargetTensors

_FORMATS: tuple[Format[Eagle3Shape], ...] = (Speculators(), FlatFormat())


class Eagle3Architecture(LayerArchitecture[Eagle3Shape]):
    name = "eagle3"
    settings = Eagle3Settings
    shape = Eagle3Shape
    serving = Serving(method="eagle3", title="EAGLE-3", reads="aux_states")
    formats = MappingProxyType({format.name: format for format in _FORMATS})
    takes_warm_start = True

    def make_shape(
        self,
        config: TrainConfig,
        target: PretrainedConfig,
        aux_layers: tuple[int, ...],
        vocab_size: int,
        draft_vocab_size: int,
    ) -> Eagle3Shape:
        assert isinstance(config.drafter, Eagle3Settings)
        return drafter_shape(target, config.drafter, aux_layers, vocab_size, draft_vocab_size)

    def build(
        self, shape: Eagle3Shape, target: TargetTensors, target_ids_D: Tensor, runtime: Runtime
    ) -> Eagle3:
        return Eagle3(
            shape,
            target.embedding_VH,
            attention=runtime.attention,
            recompute=runtime.recompute,
            embedding_on_cpu=runtime.embedding_on_cpu,
        )

    def initialise(
        self,
        model: DrafterModel,
        config: TrainConfig,
        dump: Dump,
        target: StoredTarget,
        target_ids_D: Tensor,
    ) -> None:
        assert isinstance(model, Eagle3)
        initialise(model, config, dump, target, target_ids_D)

    def activation_numbers(self, shape: Eagle3Shape, num_tokens: int, num_heads: int) -> int:
        """N (L H_t + 5 H + K n (5 H + 2 I + 2 q + 2 g)), with each token a start."""
        H, queries = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        per_start = 5 * H + 2 * shape.intermediate_size + 2 * queries + 2 * keys
        steps = num_heads * shape.num_layers
        return num_tokens * (shape.target_hidden_size * shape.num_aux + 5 * H + steps * per_start)

    def recognises(self, files: ArtifactFiles) -> bool:
        return artifact.recognises(files)

    def read(self, files: ArtifactFiles, target: OfTarget | None) -> Artifact:
        return artifact.read(files, target)

    def expected_tensors(
        self, shape: Eagle3Shape, *, embedding: bool, lm_head: bool
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        return layout.expected_tensors(shape, embedding=embedding, lm_head=lm_head)

    def artifact_tensors(
        self,
        shape: Eagle3Shape,
        model: Mapping[str, Tensor],
        vocab: Mapping[str, Tensor],
        target: TargetTensors,
        *,
        with_embedding: bool = False,
    ) -> dict[str, Tensor]:
        return tensors.artifact_tensors(shape, model, vocab, target, with_embedding=with_embedding)

    def model_weights(self, artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
        return tensors.drafter_weights(artifact, target)

    def may_share_lm_head(self, shape: Eagle3Shape) -> bool:
        return layout.may_share_lm_head(shape)

    def declared_shape(self, config: Mapping[str, Any]) -> Eagle3Shape:
        return structure.declared_shape(config)

    def config_problems(
        self, config: Mapping[str, Any], shape: Eagle3Shape, target: TargetFacts
    ) -> list[str]:
        return structure.config_problems(config, shape, target)

    def needed_engine(self, shape: Eagle3Shape) -> str:
        return layout.needed_engine(shape)

    def proposal(self, folder: Path, target: TargetTensors) -> PlainDrafter:
        return PlainDrafter.load(folder, target.embedding_VH, lambda: target.lm_head_VH)

    def scoring_model(
        self,
        shape: Eagle3Shape,
        weights: Mapping[str, Tensor],
        target: TargetTensors,
        target_ids_D: Tensor,
    ) -> Eagle3:
        """With an embedding among the weights, that one is taken, unprojected."""
        own = dict(weights)
        own_VH = own.pop(EMBEDDING, None)
        model = Eagle3(shape, target.embedding_VH if own_VH is None else own_VH)
        if own_VH is not None:
            own.pop("embed_proj.weight", None)
            if shape.projects_embedding:
                model.set_submodule("embed_proj", nn.Identity())
        model.load_state_dict(own)
        return model


ARCHITECTURE = Eagle3Architecture()
