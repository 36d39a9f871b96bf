"""What a training run and its checkpoints hold, as types.

RUN/
  config.json            the resolved TrainConfig
  provenance.json        versions, command line, host
  metrics.jsonl          a line per step and per evaluation
  checkpoints/
    step-00000120/       model.safetensors, optimizer.safetensors, vocab.safetensors,
                         drafter.json, state.json
    step-...-unevaluated/  the same, before the evaluation at this step
  result.json            the TrainResult, once the run is complete
  latest, best           names of checkpoints
  loggers.json           what each logger that the run has reported to calls it
"""

from pydantic import Field

from specpipe.schemas.base import Record
from specpipe.schemas.records.dump import (
    Sealed,
    TextOrigin,
)
from specpipe.schemas.records.metrics import EvalMetrics

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
VOCAB_MAP_FILE = "vocab.safetensors"
DRAFTER_FILE = "drafter.json"
STATE_FILE = "state.json"
CHECKPOINTS_FOLDER = "checkpoints"
LATEST_FILE = "latest"
BEST_FILE = "best"
METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"
PROVENANCE_FILE = "provenance.json"
LOGGERS_FILE = "loggers.json"


class TargetReference(Record):
    """The target that a drafter belongs to."""

    name: str
    revision: str | None
    architecture: str
    weights_sha256: str


class TrainState(Sealed):
    """`state.json`: where a run stands. The learning rate is a function of the step."""

    step: int = Field(ge=0)
    epoch: int = Field(ge=0)
    batch_in_epoch: int = Field(ge=0)
    total_steps: int
    eval_due: bool
    """The evaluation at this step is still to come."""
    num_heads: int
    previous_alpha: list[float] | None
    """Mean alpha per head of the last step (lk_hybrid with lambda_source previous_step)."""
    survival: list[float] | None = None
    """Share of the starts that come as far as head k, over the last steps (for head_weights)."""
    num_tokens: int
    """Tokens trained on so far."""
    num_left_out: int
    """Training samples left out because their prompt stands in the eval dump."""
    draft_loss_first: float | None
    draft_loss_last: float | None
    untrained: EvalMetrics | None
    """The evaluation before the first step."""
    best: EvalMetrics | None
    best_step: int | None
    dump_fingerprint: str
    eval_dump_fingerprint: str
    target: TargetReference
    text: TextOrigin
    seconds: float
    """Training time so far, over all runs."""
    data_wait: float
    """Seconds of it in which training waited for data."""
    files_sha256: dict[str, str]
    """sha256 of every other file of the checkpoint."""


class RunRecipe(Record):
    """What a run did on what, in numbers: settings that nobody gave followed from the data."""

    num_samples: int = Field(gt=0)
    """Of one pass, as the next two."""
    num_tokens: int = Field(gt=0)
    num_supervised: int = Field(ge=0)
    num_steps: int = Field(gt=0)
    num_warmup_steps: int = Field(ge=0)
    num_epochs: float
    batch_tokens: int | None
    batch_size: int | None
    optimizer: str
    learning_rate: float
    hidden_size: int | None = None
    """Of the target; None in runs of before."""


class TrainResult(Record):
    """`result.json`, written when a run is complete; what `specpipe train` reports."""

    out: str
    checkpoint: str
    """Folder of the best checkpoint."""
    steps: int = Field(gt=0)
    stopped_early: bool = False
    """Training ended before its last step: so many evaluations brought no better tau."""
    best_step: int
    num_tokens: int = Field(gt=0)
    """Tokens trained on, over all epochs."""
    fill: float | None = None
    """Share of the steps' room (steps * batch_tokens) that they took; None where steps are so many
    samples."""
    num_left_out: int
    """Training samples left out because their prompt stands in the eval dump."""
    seconds: float
    data_wait: float
    """Seconds in which training waited for data."""
    draft_loss_first: float
    draft_loss_last: float
    dump_fingerprint: str
    eval_dump_fingerprint: str
    untrained: EvalMetrics
    best: EvalMetrics
    recipe: RunRecipe | None = None
    """None: made before there was one."""
    did_nothing: bool = False
