"""DSpark behind the contract."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from specpipe.schemas.drafters.dspark import DSparkSettings, DSparkShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.artifact import ArtifactFiles
from specpipe.stages.drafters.artifact_format import Format
from specpipe.stages.drafters.contract import DrafterModel, Serving
from specpipe.stages.drafters.dspark.config import HEAD_TYPE, declared_heads
from specpipe.stages.drafters.dspark.formats.plain import Plain
from specpipe.stages.drafters.dspark.formats.speculators import Speculators
from specpipe.stages.drafters.dspark.model import DSpark, initialise_heads
from specpipe.stages.drafters.dspark.proposal import CONFIDENCE, W1, W2, PlainDSpark
from specpipe.stages.drafters.parts.artifact.layer_tensors import Sizes
from specpipe.stages.drafters.parts.artifact.speculators_config import is_speculators
from specpipe.stages.drafters.parts.block.architecture import BlockArchitecture
from specpipe.stages.drafters.parts.block.config import FROM_ANCHOR
from specpipe.stages.drafters.parts.block.structure import declared_values
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget, TargetTensors

_FORMATS: tuple[Format[DSparkShape], ...] = (Speculators(), Plain())


class DSparkArchitecture(BlockArchitecture[DSparkShape]):
    name = "dspark"
    settings = DSparkSettings
    shape = DSparkShape
    serving = Serving(method="dspark", title="DSpark", is_parallel=True)
    formats = MappingProxyType({format.name: format for format in _FORMATS})
    model = DSpark
    kinds = frozenset({"dspark", "Qwen3DSparkModel"})

    def slots(self, num_heads: int) -> int:
        return num_heads

    def further_values(self, config: TrainConfig) -> dict[str, Any]:
        assert isinstance(config.drafter, DSparkSettings)
        return {
            "markov_rank": config.drafter.markov_rank,
            "confidence": config.drafter.confidence,
        }

    def further_sizes(self, shape: DSparkShape) -> Sizes:
        rank = shape.markov_rank
        sizes: Sizes = {
            f"{W1}.weight": (shape.vocab_size, rank),
            f"{W2}.weight": (shape.draft_vocab_size, rank),
        }
        if shape.confidence:
            sizes |= {
                f"{CONFIDENCE}.weight": (1, shape.hidden_size + rank),
                f"{CONFIDENCE}.bias": (1,),
            }
        return sizes

    def stored_problems(self, shape: DSparkShape, weights: Mapping[str, Tensor]) -> list[str]:
        problems = super().stored_problems(shape, weights)
        table = weights.get(f"{W1}.weight")
        if table is None or tuple(table.shape) != (shape.vocab_size, shape.markov_rank):
            problems.append(f"its {W1} is not [{shape.vocab_size}, {shape.markov_rank}]")
        return problems

    def initialise(
        self,
        model: DrafterModel,
        config: TrainConfig,
        dump: Dump,
        target: StoredTarget,
        target_ids_D: Tensor,
    ) -> None:
        super().initialise(model, config, dump, target, target_ids_D)
        assert isinstance(model, DSpark)
        initialise_heads(model)

    def read_further(self, files: ArtifactFiles) -> dict[str, Any]:
        """Raises ConfigError for a drafter of another kind, or one whose kind is not said."""
        config, where = files.config, f"artifact {files.folder}"
        kind = config.get("markov_head_type", HEAD_TYPE)
        if kind != HEAD_TYPE:
            raise ConfigError(f"{where}: markov_head_type {kind!r} is not read here, nor by vLLM")
        # Where nothing is said, vLLM takes the one format for what the other one is not.
        if not config.get(FROM_ANCHOR, not is_speculators(config)):
            raise ConfigError(
                f"{where}: its anchor drafts nothing ({FROM_ANCHOR} is false or missing); drafters"
                " of this kind are trained here with anchors that draft"
            )
        table = next(
            (t for name, t in files.tensors.items() if name.endswith(f"{W1}.weight")), None
        )
        rank = config.get("markov_rank")
        if table is None or table.ndim != 2 or table.shape[1] != rank:
            raise ConfigError(f"{where}: markov_rank is {rank!r}, which its {W1} is not of")
        has_confidence = bool(config.get("enable_confidence_head"))
        if has_confidence and not config.get("confidence_head_with_markov"):
            raise ConfigError(f"{where}: its confidence does not see the token before: not read")
        return {"markov_rank": rank, "confidence": has_confidence}

    def declared_shape(self, config: Mapping[str, Any]) -> DSparkShape:
        return DSparkShape.model_validate(declared_values(config) | declared_heads(config))

    def needed_engine(self, shape: DSparkShape) -> str | None:
        return (
            "vLLM 0.27.1 or newer (0.25 in the format dspark), on a GPU, by its model runner V2:"
            " the one of a CPU refuses it"
        )

    def proposal(self, folder: Path, target: TargetTensors) -> PlainDSpark:
        return PlainDSpark.load(folder, target)


ARCHITECTURE = DSparkArchitecture()
