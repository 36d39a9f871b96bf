"""`validation.json`: what was exported, what was checked, what was found."""

from pydantic import Field

from specpipe.schemas.base import Frozen
from specpipe.schemas.records.checkpoint import TargetReference
from specpipe.schemas.records.dump import TargetIdentity
from specpipe.schemas.records.metrics import ReplayCurve, TauDifference
from specpipe.schemas.records.served import ServeFindings
from specpipe.schemas.settings.stages import ExportConfig, ValidateConfig
from specpipe.schemas.speedup import Recommendation


class StructureFindings(Frozen):
    """What level `structure` found."""

    passed: bool
    num_tensors: int
    num_parameters: int
    problems: list[str]
    engine: str | None = None
    """What engine it needs, where not each one serves it as it was trained."""


class Agreement(Frozen):
    """Result of comparing the plain implementation with the trainer's."""

    num_starts: int
    """Compared, each head's counted."""
    largest_difference: float
    """Of log q, over the largest logit, among the samples that agree in float32."""
    num_in_float64: int
    """Samples that were computed once more."""
    largest_in_float64: float
    problem: str | None = None
    """The first place where the two differ by more than rounding."""


class ReplayFindings(Frozen):
    """What level `replay` found."""

    passed: bool
    dump: str
    fingerprint: str
    num_samples: int
    compared_with: str
    """`recorded`: also the run's evaluation of this checkpoint; `recomputed`: the trainer's code
    alone."""
    artifact: dict[str, ReplayCurve]
    """Replays of the exported files; none where their tensors are not the checkpoint's."""
    trained_tau: dict[str, list[float]]
    """Of the drafter as it was trained, before its weights were rounded, by the trainer's code."""
    largest_difference: float | None
    """Largest relative difference of these two; None where they could not be compared."""
    tolerance: float | None = None
    """What earlier versions allowed it to be."""
    agreement: Agreement | None = None
    """Of the plain drafter with the trainer's code on the exported weights."""
    rounding: dict[str, TauDifference] = Field(default_factory=dict)
    """tau of the exported files minus that of the trained drafter, paired over samples."""
    recorded_tau: dict[str, list[float]] = Field(default_factory=dict)
    """As the run evaluated this checkpoint on these samples."""
    problems: list[str]


class Validation(Frozen):
    """The contents of validation.json."""

    passed: bool
    """Whether every level that was asked for ran and passed."""
    problems: list[str]
    structure: StructureFindings | None = None
    """None for a level that was not asked for, or not reached after a failing one."""
    replay: ReplayFindings | None = None
    serve: ServeFindings | None = None
    recommendation: Recommendation | None = None
    """How many tokens to draft; None while the export has not finished."""
    config: ExportConfig
    checkpoint: str
    step: int
    checkpoint_sha256: dict[str, str]
    """Of the files of the checkpoint, as its state.json has them."""
    artifact_sha256: dict[str, str]
    target: TargetReference
    versions: dict[str, str]


class ArtifactValidation(Frozen):
    """What `specpipe validate` found."""

    passed: bool
    problems: list[str]
    artifact: str
    structure: StructureFindings
    replay: ReplayFindings | None = None
    """None for a level that was not asked for, or not reached after a failing one."""
    serve: ServeFindings | None = None
    config: ValidateConfig
    artifact_sha256: dict[str, str]
    target: TargetIdentity
    versions: dict[str, str]
