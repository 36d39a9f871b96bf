"""MTP behind the contract."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from specpipe.schemas.drafters.mtp import MtpSettings, MtpShape
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import Format, TargetFacts
from specpipe.stages.drafters.contract import Architecture, DrafterModel, Runtime, Serving
from specpipe.stages.drafters.mtp import artifact, tensors
from specpipe.stages.drafters.mtp.model import Mtp
from specpipe.stages.drafters.mtp.proposal import PlainMtp
from specpipe.stages.drafters.mtp.shape import drafter_shape, shape_of_config
from specpipe.stages.drafters.mtp.start import initialise
from specpipe.stages.drafters.mtp.stitch import stitch
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget, TargetTensors

_FORMATS: tuple[Format[MtpShape], ...] = (artifact.BesideTarget(),)


class MtpArchitecture(Architecture[MtpShape]):
    name = "mtp"
    settings = MtpSettings
    shape = MtpShape
    serving = Serving(method="mtp", title="MTP", reads="mtp_layer")
    formats = MappingProxyType({format.name: format for format in _FORMATS})

    def make_shape(
        self,
        config: TrainConfig,
        target: PretrainedConfig,
        aux_layers: tuple[int, ...],
        vocab_size: int,
        draft_vocab_size: int,
    ) -> MtpShape:
        return drafter_shape(target, aux_layers, vocab_size)

    def stored_problems(self, shape: MtpShape, weights: Mapping[str, Tensor]) -> list[str]:
        expected = tensors.sizes(shape)
        wrong = sorted(
            name
            for name in {*expected, *weights}
            if name not in weights or tuple(weights[name].shape) != expected.get(name)
        )
        return [f"{', '.join(wrong[:3])} do not fit its config"] if wrong else []

    def build(
        self, shape: MtpShape, target: TargetTensors, target_ids_D: Tensor, runtime: Runtime
    ) -> Mtp:
        return Mtp(shape, target, runtime)

    def initialise(
        self,
        model: DrafterModel,
        config: TrainConfig,
        dump: Dump,
        target: StoredTarget,
        target_ids_D: Tensor,
    ) -> None:
        assert isinstance(model, Mtp)
        initialise(model, config, dump, target)

    def activation_numbers(self, shape: MtpShape, num_tokens: int, num_heads: int) -> int:
        """N K (9 H + 3 q + 3 I), with each token a start; of a mixture, I is that of the experts
        that a token takes."""
        return tensors.activations(shape, num_tokens, num_heads)

    def recognises(self, files: ArtifactFiles) -> bool:
        return artifact.recognises(files)

    def read(self, files: ArtifactFiles, target: OfTarget | None) -> Artifact:
        return artifact.read(files, target)

    def expected_tensors(
        self, shape: MtpShape, *, embedding: bool, lm_head: bool
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        """Embedding and lm_head are always the target's."""
        return tensors.expected_tensors(shape)

    def artifact_tensors(
        self,
        shape: MtpShape,
        model: Mapping[str, Tensor],
        vocab: Mapping[str, Tensor],
        target: TargetTensors,
        *,
        with_embedding: bool = False,
    ) -> dict[str, Tensor]:
        return tensors.artifact_tensors(shape, model)

    def model_weights(self, artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
        assert isinstance(artifact.shape, MtpShape)
        return tensors.model_weights(
            artifact.shape, artifact.tensors, f"artifact {artifact.folder}"
        )

    def may_share_lm_head(self, shape: MtpShape) -> bool:
        return True

    def declared_shape(self, config: Mapping[str, Any]) -> MtpShape:
        return shape_of_config(config)

    def config_problems(
        self, config: Mapping[str, Any], shape: MtpShape, target: TargetFacts
    ) -> list[str]:
        return artifact.config_problems(shape, target)

    def needed_engine(self, shape: MtpShape) -> str | None:
        return "vLLM, by method mtp: other engines take the layer from the target's own checkpoint"

    def num_layers(self, shape: MtpShape) -> int:
        return 1

    def stitch(self, artifact: Artifact, target: Path, out: Path) -> None:
        stitch(artifact, target, out)

    def proposal(self, folder: Path, target: TargetTensors) -> PlainMtp:
        return PlainMtp.load(folder, target)


ARCHITECTURE = MtpArchitecture()
