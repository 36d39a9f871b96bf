"""The configuration of `specpipe train`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from specpipe.schemas.drafters.base import DrafterSettings
from specpipe.schemas.drafters.registry import drafter_settings, nested, own_recipe
from specpipe.schemas.settings.stages import Config, Location, several

PREFETCH_MIB = 4096
"""Most MiB of shards that a reader of a dump keeps in memory; one of an 8B target takes 1024."""

MOST_EPOCHS = 100_000
"""Far above any use: the steps of all epochs are counted before the first."""

LossName = Literal["kl", "lk_alpha", "lk_hybrid", "ce", "tv"]
MIXTURES: dict[str, dict[LossName, float]] = {"dspark": {"ce": 0.1, "tv": 1.8}}
"""Published sums of losses, by name. DSpark's has 0.9 of the L1 distance, which is twice tv."""
AttentionName = Literal["auto", "flash", "reference"]
LoggerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
PresetName = Literal["quick", "default", "best"]

Beta = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def weighted_losses(value: Any) -> Any:
    """A loss, or several: `kl=0.5,tv=0.5`, a mapping, a mixture's name; else ValueError."""
    if isinstance(value, str):
        value = MIXTURES.get(value, value)
    if isinstance(value, str) and "=" in value:
        pairs = [part.partition("=") for part in value.split(",")]
        value = {name.strip(): weight.strip() for name, _, weight in pairs}
        if len(value) < len(pairs):
            raise ValueError("a loss is named twice")
    names = value if isinstance(value, Mapping) else [value]
    unknown = [name for name in names if name not in get_args(LossName)]
    if unknown or not names:
        raise ValueError(
            f"{unknown[0] if unknown else 'nothing'!r} is not a loss: give one of"
            f" {', '.join([*get_args(LossName), *MIXTURES])}, or several with weights, as"
            " kl=0.5,tv=0.5"
        )
    return value


class TrainConfig(Config):
    """`specpipe train`: train a drafter from a dump, without the target.

    The recipe (schemas/settings/recipe.py) fills in the settings that are None here and required in
    ResolvedTrainConfig, from the target's width and the data.
    """

    preset: PresetName = "default"
    """Budget of the recipe: steps and passes over the data where no other flag sets them; see
    below."""

    dump: Location
    """Root of the dump: a path or an fsspec URL."""
    mix: dict[Location, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Another dump of the same target, and how often it is passed for one pass over --dump; may be
    given several times."""
    layers: tuple[int, ...] | None = Field(None, min_length=1)
    """Layers of the dump that the drafter reads. [default: the drafter's usual layers, or all
    layers of the dump]"""
    out: Location
    """Run directory, on a local disk: checkpoints, metrics.jsonl, the resolved configuration."""
    drafter: Annotated[SerializeAsAny[DrafterSettings], BeforeValidator(drafter_settings)] = Field(
        default_factory=lambda: drafter_settings({})
    )
    """The drafter: its architecture (`kind`) and that one's settings. These may also stand beside
    the others, as flags do, with `drafter` then the architecture's name."""
    loss: Annotated[LossName | dict[LossName, Weight], BeforeValidator(weighted_losses)] = (
        "lk_hybrid"
    )
    """Loss to minimise, or several with weights, as kl=0.5,tv=0.5 (dspark: DSpark's published sum).
    Every loss is reported in any case."""
    eta: float = Field(3.0, gt=0)
    """lk_hybrid: how fast KL's weight decays with alpha: lambda = exp(-eta * mean alpha)."""
    lambda_scope: Literal["head", "token"] = "head"
    """lk_hybrid: one lambda per head, or one per token."""
    lambda_source: Literal["exact", "previous_step"] = "previous_step"
    """lk_hybrid: exact: take alpha from this step's batch, by an extra pass; previous_step: from
    the step before."""
    num_heads: int = Field(3, ge=1)
    """K: number of draft tokens that are trained; most drafters allow 1 to 7."""
    head_decay: float = Field(0.8, gt=0, le=1)
    """Weight of draft step k in the loss: head_decay^(k-1)."""
    head_weights: Literal["static", "survival", "dpace"] = "static"
    """Weights of the draft steps. static: --head-decay. survival: the measured share of rounds that
    reach the step. dpace: D-PACE's weight of each start, measured by an extra pass of the loss.
    [default: dpace for dflash, else static]"""
    dpace_smoothing: float = Field(0.5, gt=0, le=1)
    """dpace: a in a draft's confidence, (1 - a) q(token) + a."""
    state_loss: float | None = Field(None, ge=0)
    """Weight of a further loss: how far each draft step's output is from what the target's lm_head
    takes there; it falls with the learning rate. [default: 10 for new drafters eagle3 and peagle,
    as wide as the target, of a dump with final states; else 0]"""
    draft_vocab_size: int | None = Field(None, gt=0)
    """Draft vocabulary size, D. [default: 32000, or the whole vocabulary if smaller]"""
    draft_vocab_by: Literal["mass", "count"] = "mass"
    """Choose the draft vocabulary by the verifier's summed probability, or by token counts."""
    draft_vocab_file: Location | None = None
    """File of a draft vocabulary: safetensors with d2t (and t2d), or .npy with d2t, t2d or ids."""
    init_from: Location | None = None
    """Folder of an artifact to start from: its weights, shape and draft vocabulary."""
    warm_start: Location | None = None
    """Checkpoint of the target: start from its last layers' weights where they fit."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. [default: by the optimiser and the data]"""
    optimizer: Literal["adamw", "muon"] = "muon"
    """adamw, or muon: Muon for the matrices, AdamW for lm_head and norms."""
    muon_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of Muon's matrices. [default: as --learning-rate]"""
    muon_momentum: Beta = 0.9
    """Muon's (Nesterov) momentum."""
    weight_decay: float | None = Field(None, ge=0)
    """Decoupled weight decay of all weights. [default: 0, and --muon-weight-decay]"""
    muon_weight_decay: float | None = Field(None, ge=0)
    """Weight decay of Muon's matrices. [default: --weight-decay where that is given, else by the
    data]"""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's betas."""
    warmup_ratio: float | None = Field(None, ge=0, lt=1)
    """Share of the steps that are warm-up. [default: by the number of steps]"""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "wsd"
    """Learning rate after warm-up; wsd: constant, then decay."""
    wsd_decay: float = Field(0.4, gt=0, le=1)
    """wsd: share of the steps that are decay; at most all that warm-up leaves."""
    max_grad_norm: float = Field(0.5, gt=0)
    """Largest global norm of the gradients; larger gradients are scaled down."""
    num_epochs: int | None = Field(None, gt=0, le=MOST_EPOCHS)
    """Passes over the dump; each dump of --mix is passed its weight times as often. [default: by
    the data]"""
    max_steps: int | None = Field(None, gt=0)
    """Number of optimiser steps, instead of --num-epochs."""
    batch_tokens: int | None = Field(None, gt=0)
    """Most tokens of a step; whole samples are packed into it. [default: by the data]"""
    batch_size: int | None = Field(None, gt=0)
    """Number of samples of a step, instead of --batch-tokens."""
    pack_tokens: int | None = Field(None, gt=0)
    """Most tokens of one forward and backward pass. [default: the whole step, and
    at most 8,192 where its size is left open]"""
    shard: bool = False
    """Shard weights and optimiser over torchrun's processes (FSDP2); else each has a copy."""
    context_length: int | None = Field(None, gt=1)
    """Truncate longer samples to this many tokens."""
    loss_chunk_mib: int = Field(32, gt=0)
    """MiB of one chunk of the loss's logits."""
    data_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the prompts to train on, held-out ones aside; a larger share contains a smaller."""
    learning_curve: bool = False
    """Also train on 1/8, 1/4 and 1/2 of the data, and predict what more data would bring."""
    held_out_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the prompts held out for evaluation."""
    eval_dump: Location | None = None
    """Evaluate on all of this dump instead of held-out prompts."""
    eval_every: int | None = Field(None, gt=0)
    """Steps between evaluations. [default: a tenth of the run]"""
    eval_tokens: int | None = Field(None, gt=0)
    """Most tokens of one evaluation during training. [default: by preset]"""
    checkpoint_every: int | None = Field(None, gt=0)
    """Steps between checkpoints. [default: as --eval-every, at most 500]"""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of latest checkpoints kept, in addition to the best."""
    preverify: Literal["auto", "full", "metadata"] = "auto"
    """Read the whole dump before the first step. [default: auto: if under 16 GiB]"""
    prefetch_mib: int = Field(PREFETCH_MIB, ge=0)
    """Most MiB of shards to read ahead; 0: no reading ahead. If four shards do not fit, samples are
    read one by one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast with float32 master weights."""
    attention: AttentionName = "auto"
    """Attention kernel; reference is slow, for debugging."""
    activation_checkpointing: bool = False
    """Recompute activations: less memory, more compute."""
    embedding_on_cpu: bool = False
    """Keep the target's embedding in the host's memory; only a batch's rows go to the device."""
    device: str = "auto"
    """cpu, cuda, ... [default: a GPU if there is one]"""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the first weights and of the order of the samples."""
    log: Annotated[tuple[LoggerName, ...], BeforeValidator(several)] = ()
    """Services that get the metrics, besides metrics.jsonl; each needs its package."""
    log_project: str = Field("specpipe", min_length=1)
    """Project (for MLflow: experiment) of the loggers."""
    log_name: str | None = Field(None, min_length=1)
    """Name of the run in the loggers. [default: that of --out]"""
    early_stop: int | None = Field(None, ge=1)
    """Stop after this many evaluations in a row without a better tau. [default: never]"""
    time_limit: float | None = Field(None, gt=0)
    """Seconds; then save a checkpoint and leave with exit code 5."""
    require_servable: bool = False
    """Exit code 2 where vLLM serves no drafters for the target. [default: a warning]"""

    @field_validator("log")
    @classmethod
    def _once(cls, names: tuple[LoggerName, ...]) -> tuple[LoggerName, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a logger is named twice")
        return names

    def flat(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """Every setting, the drafter's beside the others and `drafter` its name.

        It makes the same configuration again.
        """
        own = self.drafter.model_dump(mode=mode)
        kind = own.pop("kind")
        return self.model_dump(mode=mode, exclude={"drafter"}) | own | {"drafter": kind}

    @property
    def flat_fields_set(self) -> set[str]:
        """The settings that were set, by the names in `flat`."""
        own = self.drafter.model_fields_set - {"kind"}
        return (self.model_fields_set - {"drafter"}) | own | ({"drafter"} & self.model_fields_set)

    @property
    def losses(self) -> dict[LossName, float]:
        """What is minimised, as weights of losses."""
        return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

    @model_validator(mode="before")
    @classmethod
    def _nested_drafter(cls, values: Any) -> Any:
        """Settings of the drafter that stand beside the others go to it, and win over its own."""
        if not isinstance(values, dict):
            return values
        values = nested(values)
        return {**own_recipe(values.get("drafter")), **values}

    @model_validator(mode="after")
    def _as_many_heads_as_the_drafter_has(self) -> "TrainConfig":
        if (problem := self.drafter.num_heads_problem(self.num_heads)) is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _a_drafter_with_a_loss_of_states(self) -> "TrainConfig":
        if self.state_loss and self.drafter.state_loss is None:
            raise ValueError(f"state_loss: a drafter {self.drafter.kind} has none; leave it out")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> "TrainConfig":
        if self.init_from is not None:
            for name in ("warm_start", "draft_vocab_file", "draft_vocab_size"):
                if getattr(self, name) is not None:
                    raise ValueError(f"init_from brings its own weights and vocabulary: no {name}")
        if self.draft_vocab_file is not None and self.draft_vocab_size is not None:
            raise ValueError("draft_vocab_file brings its own size: no draft_vocab_size")
        return self


class ResolvedTrainConfig(TrainConfig):
    """The settings of a run, with every default filled in; stored in the run's config.json."""

    state_loss: float = Field(0.0, ge=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    muon_weight_decay: float = Field(ge=0)
    warmup_ratio: float = Field(ge=0, lt=1)
    num_epochs: int = Field(gt=0)
    batch_tokens: int = Field(gt=0)
    eval_tokens: int = Field(gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_decay(cls, values: Any) -> Any:
        """Of runs that began when both optimisers had the same one."""
        if not isinstance(values, dict) or "muon_weight_decay" in values:
            return values
        return {**values, "muon_weight_decay": values.get("weight_decay", 0.0)}
