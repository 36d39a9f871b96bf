"""P-EAGLE behind the contract."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from specpipe.schemas.drafters.peagle import PeagleSettings, PeagleShape
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import Format, TargetFacts
from specpipe.stages.drafters.contract import (
    DrafterModel,
    Generator,
    Rows,
    Runtime,
    Serving,
)
from specpipe.stages.drafters.parts.layer_shape import fresh_shape
from specpipe.stages.drafters.parts.layered import LayerArchitecture
from specpipe.stages.drafters.parts.mask_token import mask_token
from specpipe.stages.drafters.peagle import artifact, layout, sampling, structure, tensors
from specpipe.stages.drafters.peagle.formats.flat import FlatFormat
from specpipe.stages.drafters.peagle.formats.speculators import Speculators
from specpipe.stages.drafters.peagle.model import Peagle
from specpipe.stages.drafters.peagle.proposal import PlainDrafter
from specpipe.stages.drafters.peagle.start import initialise
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.target.head.target_tensors import StoredTarget, TargetTensors

_FORMATS: tuple[Format[PeagleShape], ...] = (Speculators(), FlatFormat())


class PeagleArchitecture(LayerArchitecture[PeagleShape]):
    name = "peagle"
    settings = PeagleSettings
    shape = PeagleShape
    serving = Serving(
        method="eagle3",
        title="P-EAGLE",
        is_parallel=True,
        # An engine that is not told so loads it as an EAGLE-3 drafter, with a warning alone.
        options=MappingProxyType({"parallel_drafting": True}),
        # vLLM 0.32 takes its K rows of each round for those of the number that it was told.
        follows_schedule=False,
    )
    formats = MappingProxyType({format.name: format for format in _FORMATS})
    takes_warm_start = True
    samples_starts = True

    def make_shape(
        self,
        config: TrainConfig,
        target: PretrainedConfig,
        aux_layers: tuple[int, ...],
        vocab_size: int,
        draft_vocab_size: int,
    ) -> PeagleShape:
        settings = config.drafter
        assert isinstance(settings, PeagleSettings)
        further = {
            "layer_type": settings.layer_type,
            "vocab_size": vocab_size,
            "draft_vocab_size": draft_vocab_size,
            "aux_layers": aux_layers,
            "norm_before_residual": settings.norm_before_residual,
            "norm_before_fc": settings.norm_before_fc,
            "mask_token": settings.mask_token or 0,
        }
        return fresh_shape(PeagleShape, target, settings, further)

    def fitted_to_text(
        self, shape: PeagleShape, config: TrainConfig, statistics: Callable[[], VocabStatistics]
    ) -> PeagleShape:
        assert isinstance(config.drafter, PeagleSettings)
        token = mask_token(statistics(), config.drafter.mask_token)
        return shape.model_copy(update={"mask_token": token})

    def stored_problems(self, shape: PeagleShape, weights: Mapping[str, Tensor]) -> list[str]:
        return [*super().stored_problems(shape, weights), *artifact.shape_problems(shape)]

    def build(
        self, shape: PeagleShape, target: TargetTensors, target_ids_D: Tensor, runtime: Runtime
    ) -> Peagle:
        return Peagle(shape, target.embedding_VH, runtime)

    def initialise(
        self,
        model: DrafterModel,
        config: TrainConfig,
        dump: Dump,
        target: StoredTarget,
        target_ids_D: Tensor,
    ) -> None:
        assert isinstance(model, Peagle)
        initialise(model, config, dump, target, target_ids_D)

    def choose_rows(self, config: TrainConfig, rows_KN: Rows, rng: Generator) -> Rows:
        assert isinstance(config.drafter, PeagleSettings)
        return sampling.thinned(config.drafter, rows_KN, rng)

    def activation_numbers(self, shape: PeagleShape, num_tokens: int, num_heads: int) -> int:
        """N (L H + 10 H + (1 + m) n (5 H + 2 I + 2 q + 2 g)), with each token an anchor of m masked
        rows, thinned as they are by default."""
        H, queries = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        per_row = 5 * H + 2 * shape.intermediate_size + 2 * queries + 2 * keys
        masked = sampling.rows_per_anchor(PeagleSettings(), num_heads)
        rows = num_tokens * shape.num_layers * (1 + masked)
        return round(num_tokens * (shape.num_aux + 10) * H + rows * per_row)

    def recognises(self, files: ArtifactFiles) -> bool:
        return artifact.recognises(files)

    def read(self, files: ArtifactFiles, target: OfTarget | None) -> Artifact:
        return artifact.read(files, target)

    def expected_tensors(
        self, shape: PeagleShape, *, embedding: bool, lm_head: bool
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        return layout.expected_tensors(shape, embedding=embedding, lm_head=lm_head)

    def artifact_tensors(
        self,
        shape: PeagleShape,
        model: Mapping[str, Tensor],
        vocab: Mapping[str, Tensor],
        target: TargetTensors,
        *,
        with_embedding: bool = False,
    ) -> dict[str, Tensor]:
        """With its own embedding in any case: the mask token's row is trained."""
        return tensors.artifact_tensors(shape, model, vocab, target)

    def model_weights(self, artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
        return tensors.drafter_weights(artifact, target)

    def may_share_lm_head(self, shape: PeagleShape) -> bool:
        return layout.may_share_lm_head(shape)

    def declared_shape(self, config: Mapping[str, Any]) -> PeagleShape:
        return structure.declared_shape(config)

    def config_problems(
        self, config: Mapping[str, Any], shape: PeagleShape, target: TargetFacts
    ) -> list[str]:
        return structure.config_problems(config, shape, target)

    def needed_engine(self, shape: PeagleShape) -> str | None:
        return layout.needed_engine(shape)

    def proposal(self, folder: Path, target: TargetTensors) -> PlainDrafter:
        return PlainDrafter.load(folder, target.embedding_VH, lambda: target.lm_head_VH)


ARCHITECTURE = PeagleArchitecture()
