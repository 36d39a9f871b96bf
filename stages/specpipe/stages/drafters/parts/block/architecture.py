"""What the architectures of blocks have in common behind the contract."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from transformers import PretrainedConfig

from specpipe.schemas.drafters.block import BlockSettings, BlockShape
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import TargetFacts
from specpipe.stages.drafters.contract import (
    DrafterModel,
    Generator,
    Rows,
    Runtime,
)
from specpipe.stages.drafters.parts.artifact.layer_tensors import Sizes
from specpipe.stages.drafters.parts.artifact.speculators_config import is_speculators
from specpipe.stages.drafters.parts.block import artifact, start, structure, tensors
from specpipe.stages.drafters.parts.block.model import BlockDrafter
from specpipe.stages.drafters.parts.block.rows import chosen_anchors
from specpipe.stages.drafters.parts.layer_shape import fresh_shape
from specpipe.stages.drafters.parts.layered import LayerArchitecture
from specpipe.stages.drafters.parts.mask_token import mask_token
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.target.head.target_tensors import StoredTarget, TargetTensors

Shape = TypeVar("Shape", bound=BlockShape)


class BlockArchitecture(LayerArchitecture[Shape]):
    """Subclasses say their name, formats and proposal, and what they have beside the blocks."""

    samples_starts = True
    model: ClassVar[type[BlockDrafter]]
    kinds: ClassVar[frozenset[str]]
    """Names of the architecture in configs, speculators' first and those of others."""

    def further_values(self, config: TrainConfig) -> dict[str, Any]:
        """Of the fields that its shape has beside those of every such shape."""
        return {}

    def further_sizes(self, shape: Shape) -> Sizes:
        """Of the tensors that it has beside those of every such drafter."""
        return {}

    def slots(self, num_heads: int) -> int:
        """Of a block that drafts so many tokens."""
        return num_heads + 1

    def make_shape(
        self,
        config: TrainConfig,
        target: PretrainedConfig,
        aux_layers: tuple[int, ...],
        vocab_size: int,
        draft_vocab_size: int,
    ) -> Shape:
        settings = config.drafter
        assert isinstance(settings, BlockSettings)
        further = {
            "vocab_size": vocab_size,
            "draft_vocab_size": draft_vocab_size,
            "aux_layers": aux_layers,
            "causal": settings.causal,
            "block_size": self.slots(config.num_heads),
            "mask_token": settings.mask_token or 0,
            "own_lm_head": settings.own_lm_head,
        }
        return fresh_shape(self.shape, target, settings, further | self.further_values(config))

    def fitted_to_text(
        self, shape: Shape, config: TrainConfig, statistics: Callable[[], VocabStatistics]
    ) -> Shape:
        settings = config.drafter
        assert isinstance(settings, BlockSettings)
        token = mask_token(statistics(), settings.mask_token)
        return shape.model_copy(update={"mask_token": token})

    def stored_problems(self, shape: Shape, weights: Mapping[str, Tensor]) -> list[str]:
        problems = super().stored_problems(shape, weights)
        if not 0 <= shape.mask_token < shape.vocab_size:
            problems.append(f"its mask token {shape.mask_token} is not in the vocabulary")
        return problems

    def build(
        self, shape: Shape, target: TargetTensors, target_ids_D: Tensor, runtime: Runtime
    ) -> BlockDrafter:
        head_DH = target.lm_head_VH[target_ids_D]
        return self.model(shape, target.embedding_VH, head_DH, runtime)

    def initialise(
        self,
        model: DrafterModel,
        config: TrainConfig,
        dump: Dump,
        target: StoredTarget,
        target_ids_D: Tensor,
    ) -> None:
        assert isinstance(model, BlockDrafter)
        start.initialise(model, target, target_ids_D)

    def choose_rows(self, config: TrainConfig, rows_KN: Rows, rng: Generator) -> Rows:
        assert isinstance(config.drafter, BlockSettings)
        return chosen_anchors(rows_KN, config.drafter.anchors, rng)

    def depends_on_num_heads(self, shape: Shape) -> bool:
        """A slot sees all mask tokens of its block, unless the block is causal."""
        return not shape.causal

    def activation_numbers(self, shape: Shape, num_tokens: int, num_heads: int) -> int:
        """T (L H_t + 2 H + n 4 g) and N B n (5 H + 2 I + 3 q + 4 g), with each token a start."""
        H, queries = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        layers, slots = shape.num_layers, self.slots(num_heads)
        context = shape.num_aux * shape.target_hidden_size + 2 * H + layers * 4 * keys
        per_row = 5 * H + 2 * shape.intermediate_size + 3 * queries + 4 * keys
        return num_tokens * (context + slots * (H + layers * per_row))

    def recognises(self, files: ArtifactFiles) -> bool:
        config = files.config
        if is_speculators(config):
            return config.get("speculators_model_type") in self.kinds
        return bool(self.kinds & set(config.get("architectures") or ()))

    def read(self, files: ArtifactFiles, target: OfTarget | None) -> Artifact:
        return artifact.read(self.shape, files, target, self.read_further(files))

    def read_further(self, files: ArtifactFiles) -> dict[str, Any]:
        """The values of `further_values` that a config says."""
        return {}

    def expected_tensors(self, shape: Shape, *, embedding: bool, lm_head: bool) -> tensors.Expected:
        more = self.further_sizes(shape)
        return tensors.expected_tensors(shape, more, embedding=embedding, lm_head=lm_head)

    def artifact_tensors(
        self,
        shape: Shape,
        model: Mapping[str, Tensor],
        vocab: Mapping[str, Tensor],
        target: TargetTensors,
        *,
        with_embedding: bool = False,
    ) -> dict[str, Tensor]:
        more = self.further_sizes(shape)
        expected = tensors.expected_tensors(shape, more, embedding=with_embedding)
        return tensors.artifact_tensors(expected, model, vocab, target)

    def model_weights(self, artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
        return tensors.model_weights(artifact, target)

    def may_share_lm_head(self, shape: Shape) -> bool:
        return tensors.may_share_lm_head(shape)

    def config_problems(
        self, config: Mapping[str, Any], shape: Shape, target: TargetFacts
    ) -> list[str]:
        return structure.block_problems(config, shape, target)
