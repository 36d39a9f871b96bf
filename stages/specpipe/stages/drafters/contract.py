"""The contract of drafter architectures: everything that the rest of specpipe asks of them.

Downstream of a drafter everything needs the same two things: its outputs [K, N, X] for N starts,
and the matrices that turn them into logits. Losses, measures, acceptance, replay, packing,
checkpoints, ranks, loggers and the report never ask which architecture it is.

An architecture is a folder beside this file. It has its settings and shape in
`schemas/drafters/NAME.py`, and an `Architecture` in `NAME/architecture.py`; `registry.py` and the
registry of the schemas have a line for it.

Legend: T tokens, L aux layers, N starts, K draft steps, H hidden size, X width of an output (H,
or more for a drafter whose matrix has further columns), D draft vocabulary, R starts of one span,
M measures.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from transformers import PretrainedConfig

from specpipe.schemas.drafters.base import DrafterSettings, DrafterShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import EMBEDDING
from specpipe.schemas.settings.train import AttentionName, TrainConfig
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import Format, TargetFacts
from specpipe.stages.samples.batch import Batch
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.target.head.target_tensors import StoredTarget, TargetTensors, WithEmbedding
from specpipe.stages.target.vllm.support.engine_needs import EngineNeeds


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a model computes: choices of speed and memory that do not change its results."""

    attention: AttentionName = "auto"
    recompute: bool = False
    """Store only the inputs of layers for the backward pass, and recompute the rest."""
    embedding_on_cpu: bool = False
    settings: DrafterSettings | None = None
    """Of the run that trains it, for what its loss alone depends on."""


@dataclass(frozen=True, slots=True)
class Serving(EngineNeeds):
    """How vLLM serves the drafter."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of `--speculative-config` that it needs."""
    follows_schedule: bool = True
    """An engine can change the number of draft tokens while it runs, as by batch size."""


class DrafterModel(nn.Module, ABC):
    """A drafter in training. Parameter names are those of checkpoints."""

    shape: DrafterShape

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """What the head of step k takes at start n: [K, N, X].

        Every head is computed at every start, also where `batch.rows_KN` says that it is not used:
        there it may be anything finite.
        """

    @abstractmethod
    def heads(self) -> Heads:
        """The matrices [D, X] from outputs to logits: one for all steps, or one per step.

        One that does not require a gradient is frozen, and none is computed.
        """

    def extra_loss(
        self, batch: Batch, outputs_KNX: Tensor, measures_MKN: Tensor, of: Denominators
    ) -> Tensor | None:
        """A further term of the loss, this batch's part of it; None: there is none.

        `of` holds the counts of the whole step, to divide by.
        """
        return None

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether it is a matrix between dense activations, which Muon is for."""
        return parameter.ndim == 2 and not name.startswith("lm_head")


class Proposal(Protocol):
    """The plain second implementation, which replays an artifact's files and shares no code with
    the model."""

    @property
    def aux_layers(self) -> tuple[int, ...]: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def target_ids_D(self) -> Tensor: ...

    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, R, X] of every step at the starts [begin, end) of one text, end < T."""

    def logits(self, hidden_RX: Tensor, step: int) -> Tensor:
        """Logits [R, D] of step `step`, from 1, from its outputs."""

    def double(self) -> "Proposal":
        """The same in float64."""


Shape = TypeVar("Shape", bound=DrafterShape)
Generator = np.random.Generator
Rows = npt.NDArray[np.bool_]


class Architecture(ABC, Generic[Shape]):
    """One architecture: how its drafters are made, written, read and served."""

    name: str
    settings: type[DrafterSettings]
    shape: type[Shape]
    serving: Serving
    formats: Mapping[str, Format[Any]]
    """Layouts of its artifacts, by name; the first is the default one."""

    # Training

    @abstractmethod
    def make_shape(
        self,
        config: TrainConfig,
        target: PretrainedConfig,
        aux_layers: tuple[int, ...],
        vocab_size: int,
        draft_vocab_size: int,
    ) -> Shape:
        """The shape of a fresh drafter; raises ConfigError where the settings do not fit."""

    def fitted_to_text(
        self, shape: Shape, config: TrainConfig, statistics: Callable[[], VocabStatistics]
    ) -> Shape:
        """A fresh shape with what follows from the tokens of the text, as a mask token does;
        raises ConfigError where the settings do not fit them."""
        return shape

    def as_trained(self, shape: Shape) -> Shape:
        """A stored shape without values that training passes over."""
        return shape

    @abstractmethod
    def stored_problems(self, shape: Shape, weights: Mapping[str, Tensor]) -> list[str]:
        """Why training never leaves these weights with this shape, in words.

        It is asked before a model is built, whose size the shape decides.
        """

    @abstractmethod
    def build(
        self, shape: Shape, target: TargetTensors, target_ids_D: Tensor, runtime: Runtime
    ) -> DrafterModel:
        """The model on the CPU in float32, its weights as torch's initialisers leave them.

        `target_ids_D` is the draft vocabulary.
        """

    @abstractmethod
    def initialise(
        self,
        model: DrafterModel,
        config: TrainConfig,
        dump: Dump,
        target: StoredTarget,
        target_ids_D: Tensor,
    ) -> None:
        """Give a fresh drafter its first weights; raises ConfigError where they do not fit."""

    def choose_rows(self, config: TrainConfig, rows_KN: Rows, rng: Generator) -> Rows:
        """Which heads of which starts of one sample a step trains on, of those that it could.

        A start whose heads are all left out is not computed at all. `rng` is a function of the
        seed, the step and the sample.
        """
        return rows_KN

    takes_warm_start: bool = False
    """Whether its first layers may be the target's last ones."""

    samples_starts: bool = False
    """Whether `choose_rows` leaves any out."""

    def depends_on_num_heads(self, shape: Shape) -> bool:
        """Whether what step k drafts depends on how many steps there are: it is then evaluated once
        for each number of draft tokens."""
        return False

    @abstractmethod
    def activation_numbers(self, shape: Shape, num_tokens: int, num_heads: int) -> int:
        """Numbers that autograd stores in a pass over `num_tokens` tokens, for `specpipe plan`."""

    # Artifacts

    @abstractmethod
    def recognises(self, files: ArtifactFiles) -> bool:
        """Whether an artifact is of this architecture, in whatever format."""

    @abstractmethod
    def read(self, files: ArtifactFiles, target: OfTarget | None) -> Artifact:
        """An artifact under our names; raises ConfigError where it is none for this target."""

    @abstractmethod
    def expected_tensors(
        self, shape: Shape, *, embedding: bool, lm_head: bool
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (size, "float", "int64" or "bool") of every tensor of an artifact.

        `embedding` and `lm_head` say whether it has its own where it may leave them to the target.
        """

    @abstractmethod
    def artifact_tensors(
        self,
        shape: Shape,
        model: Mapping[str, Tensor],
        vocab: Mapping[str, Tensor],
        target: TargetTensors,
        *,
        with_embedding: bool = False,
    ) -> dict[str, Tensor]:
        """The tensors to write, from a checkpoint's: bfloat16, and the map where D < V.

        What is the target's own is written as the target has it.
        """

    @abstractmethod
    def model_weights(self, artifact: Artifact, target: TargetTensors) -> dict[str, Tensor]:
        """The model's parameters in float32, from an artifact's tensors.

        Raises ConfigError for an artifact that our model does not compute as it was trained.
        """

    @abstractmethod
    def may_share_lm_head(self, shape: Shape) -> bool:
        """Whether an engine takes the target's lm_head where the artifact has none."""

    @abstractmethod
    def declared_shape(self, config: Mapping[str, Any]) -> Shape:
        """The drafter that a config in one of our formats declares.

        Raises ValueError, TypeError or KeyError where a value has no sense.
        """

    @abstractmethod
    def config_problems(
        self, config: Mapping[str, Any], shape: Shape, target: TargetFacts
    ) -> list[str]:
        """Contradictions in a config, or between it and the target, in words."""

    def needed_engine(self, shape: Shape) -> str | None:
        """The engine that serves the drafter as it was trained, and why; None where any does."""
        return None

    def stitch(self, artifact: Artifact, target: Path, out: Path) -> None:
        """A copy of the folder `target` at `out` with the artifact's tensors in its checkpoint;
        raises ConfigError where they do not belong there."""
        raise ConfigError(
            f"a drafter {self.name} is no part of its target's checkpoint; give --format"
            f" {' or '.join(self.formats)}"
        )

    # Proof

    @abstractmethod
    def proposal(self, folder: Path, target: TargetTensors) -> Proposal:
        """The plain implementation of the artifact in `folder`."""

    def scoring_model(
        self,
        shape: Shape,
        weights: Mapping[str, Tensor],
        target: TargetTensors,
        target_ids_D: Tensor,
    ) -> DrafterModel:
        """The model with these weights, to score with; an embedding among them takes the place of
        the target's."""
        own = dict(weights)
        if EMBEDDING in own:
            target = WithEmbedding(target, own.pop(EMBEDDING))
        model = self.build(shape, target, target_ids_D, Runtime())
        model.load_state_dict(own)
        return model

    def num_layers(self, shape: Shape) -> int:
        """Decoder layers whose keys and values an engine keeps for it."""
        return int(getattr(shape, "num_layers", 0))
