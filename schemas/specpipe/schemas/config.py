"""The configuration of each stage: frozen, unknown fields are errors, a line on every field."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from specpipe.schemas.location import without_credentials
from specpipe.schemas.sample import SplitFraction

PREFETCH_MIB = 4096
"""Most MiB of shards that a reader of a dump keeps in memory; one of an 8B target takes 1024."""

LossName = Literal["kl", "lk_alpha", "lk_hybrid", "ce", "tv"]
ValidationLevel = Literal["structure", "replay", "serve"]
Beta = Annotated[float, Field(ge=0, lt=1)]
DraftTokens = Annotated[int, Field(ge=1)]
LogitsMode = Annotated[str, Field(pattern=r"^(final|full|topk:[1-9][0-9]{0,5})$")]


def _no_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Location = Annotated[str, AfterValidator(_no_blank)]
"""A local path or an fsspec URL."""


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def without_credentials(self) -> Self:
        """The configuration as it may be written down: no credentials in its URLs."""
        return self.model_validate_json(without_credentials(self.model_dump_json()))


class GenerateConfig(Config):
    """`specpipe dump --generate`: the target writes the assistant turns itself."""

    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the most likely tokens of this summed probability."""
    max_tokens: int = Field(512, gt=0)
    """Most tokens of one assistant turn."""
    stop: tuple[str, ...] = ()
    """Texts that end a turn, besides the target's own end of turn; they stay in the text."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Every turn's own seed follows from this one and from the sample's identity."""
    samples_per_prompt: int = Field(1, gt=0)
    """Answers to each prompt."""


class InputConfig(Config):
    """Text for a target, and what becomes of it on the way to tokens."""

    target: Location
    """Local folder or hub id of the target."""
    revision: str | None = None
    """Revision of a hub target."""
    data: Annotated[tuple[Location, ...], BeforeValidator(_several)] = Field(min_length=1)
    """JSONL or Parquet files, folders or globs (fsspec URLs) of pretokenised samples (`input_ids`,
    ...), conversations (`messages`) or plain text (`text`)."""
    loss_mask: Literal["auto", "markers", "boundaries"] = "auto"
    """What the assistant wrote: by the template's generation markers, or by rendering with and
    without the turn; `auto`: by markers where the template has them."""
    context_length: int | None = Field(None, gt=1)
    """Longer samples are truncated to this many tokens; default: the target's own maximum."""
    max_rejected: int = Field(0, ge=0)
    """How many malformed inputs may be refused before the run stops."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target."""


class PrepareConfig(InputConfig):
    """`specpipe prepare`: tokenise once, into a file of pretokenised samples."""

    out: Location
    """The file, a path or fsspec URL: .jsonl (also .jsonl.gz, .jsonl.zst) or .parquet."""


class DumpConfig(InputConfig):
    """`specpipe dump`: run the target once and write its states to a dump."""

    out: Location
    """Root of the dump, an fsspec URL."""
    backend: Literal["auto", "hf", "vllm"] = "auto"
    """What runs the target; `auto`: vLLM where it is installed and knows the target, else hf."""
    engine: dict[str, Any] = {}
    """Options of the vLLM engine, by vLLM's own names (tensor_parallel_size, ...)."""
    generate: GenerateConfig | None = None
    """Let the target write the assistant turns (on-policy text); the input gives the prompts."""
    format: Literal["zarr", "parquet"] = "zarr"
    """Storage format of the shards."""
    logits: LogitsMode = "final"
    """What is kept of the verifier's logits: `final` (the final state and log Z), `topk:N`, or
    `full`."""
    states: Literal["bfloat16", "int8"] = "bfloat16"
    """How auxiliary states are stored; int8 has a static scale per channel and one per token."""
    compression: Literal["none", "zstd"] = "none"
    """Lossless compression of the chunks."""
    layers: tuple[int, ...] | None = None
    """Auxiliary layer ids (id k enters decoder layer k); EAGLE-3's default when left out."""
    text_temperature: float | None = Field(None, ge=0)
    """Say that this target wrote the supervised text, at this temperature (0: greedy)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype in which the target runs; `auto`: the checkpoint's own."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto`: the GPU if there is one."""
    batch_tokens: int = Field(8192, gt=0)
    """Most tokens, padding included, of one forward pass of the target."""
    shard_tokens: int = Field(32768, gt=0)
    """Tokens of one shard: the unit of work, of commit and of resume."""
    chunk_tokens: int | None = Field(None, gt=0)
    """Most rows of one chunk; default: the power of two nearest 48 MiB."""
    write_buffer_mib: int = Field(256, gt=0)
    """Most MiB of chunks that wait for the store while the target goes on."""
    staging_mib: int = Field(1024, gt=0)
    """Most MiB of states between the vLLM engine and the writer, or one text where that is more;
    the engine works ahead as far as they go."""
    executor: Literal["local", "ray"] = "local"
    """Where the workers run: processes of this machine, or actors of a Ray cluster."""
    workers: int = Field(1, gt=0)
    """Engines that this command runs at the same time."""
    worker_index: int | Literal["auto"] | None = None
    """This process is one of `worker_count` that somebody else starts, and does its share alone;
    `auto`: by SLURM_PROCID and SLURM_NTASKS, or JOB_COMPLETION_INDEX."""
    worker_count: int | None = Field(None, gt=0)
    """Processes that share the dump; with `worker_index`."""

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> "DumpConfig":
        if self.generate is not None and self.text_temperature is not None:
            raise ValueError("text_temperature is for text that is given, not generated")
        return self

    @model_validator(mode="after")
    def _one_kind_of_worker(self) -> "DumpConfig":
        index, count = self.worker_index, self.worker_count
        if index is not None and (self.workers > 1 or self.executor != "local"):
            raise ValueError(
                "worker_index is for workers that are started one by one: it excludes "
                "workers and executor"
            )
        if isinstance(index, int) and not (count is not None and 0 <= index < count):
            raise ValueError("worker_index needs a worker_count above it")
        if index is None and count is not None:
            raise ValueError("worker_count needs a worker_index")
        return self


class TrainConfig(Config):
    """`specpipe train`: train a drafter from a dump, without the target."""

    dump: Location
    """Root of the dump, an fsspec URL."""
    out: Location
    """Run directory: checkpoints, metrics.jsonl, the resolved configuration."""
    drafter: Literal["eagle3"] = "eagle3"
    """Architecture of the drafter."""
    loss: LossName = "lk_hybrid"
    """What is minimised; every loss is reported whichever is chosen."""
    eta: float = Field(3.0, gt=0)
    """lk_hybrid: lambda = exp(-eta * mean alpha)."""
    lambda_source: Literal["exact", "previous_step"] = "exact"
    """lk_hybrid: alpha of the same batch (one more pass over the loss), or of the last step."""
    num_heads: int = Field(3, ge=1, le=7)
    """K: draft steps that are unrolled in training."""
    head_decay: float = Field(0.8, gt=0, le=1)
    """Head k's loss weighs head_decay**(k-1)."""
    draft_vocab_size: int | None = Field(None, gt=0)
    """D; default: 32,000, or the whole vocabulary where that is smaller."""
    draft_vocab_by: Literal["mass", "count"] = "mass"
    """Choose the draft vocabulary by the verifier's summed probability, or by token counts."""
    intermediate_size: int | None = Field(None, gt=0, le=2**20)
    """Width of the drafter's MLP; default: the target's."""
    norm_before_residual: bool = False
    """Add the residual after the hidden norm instead of before it."""
    norm_before_fc: bool = False
    """RMSNorm on the concatenated auxiliary states."""
    fc_norm: bool = False
    """RMSNorm on each auxiliary state."""
    norm_output: bool = False
    """Feed the normed output to the next draft step."""
    learning_rate: float = Field(4e-4, gt=0)
    """Peak learning rate (AdamW)."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's exponential decay rates."""
    warmup_ratio: float = Field(0.04, ge=0, lt=1)
    """Share of the steps over which the learning rate rises; then it falls along a cosine."""
    max_grad_norm: float = Field(0.5, gt=0)
    """Gradients are scaled down to this global norm."""
    num_epochs: int = Field(10, gt=0)
    """Passes over the dump."""
    max_steps: int | None = Field(None, gt=0)
    """Optimiser steps, over as many epochs as it takes; overrides num_epochs."""
    batch_tokens: int = Field(8192, gt=0)
    """Token budget of one optimiser step (whole samples are packed into it)."""
    batch_size: int | None = Field(None, gt=0)
    """Samples of one optimiser step, instead of batch_tokens."""
    context_length: int | None = Field(None, gt=1)
    """Longer samples are cut here."""
    loss_chunk_mib: int = Field(64, gt=0)
    """Size of one [rows, draft vocabulary] chunk of the loss."""
    held_out_fraction: SplitFraction = 0.05
    """Share of the prompts held out for evaluation (none when eval_dump is given)."""
    eval_dump: Location | None = None
    """Evaluate on all of this dump instead of a held-out share."""
    eval_every: int | None = Field(None, gt=0)
    """Steps between evaluations; default: a tenth of the run."""
    eval_tokens: int = Field(100_000, gt=0)
    """Most tokens of one evaluation during training."""
    checkpoint_every: int | None = Field(None, gt=0)
    """Steps between checkpoints; default: as eval_every, at most 500."""
    keep_checkpoints: int = Field(2, ge=1)
    """Latest checkpoints that are kept, besides the best."""
    preverify: Literal["auto", "full", "metadata"] = "auto"
    """Read the whole dump before the first step (auto: when it is under 16 GiB)."""
    prefetch_mib: int = Field(PREFETCH_MIB, ge=0)
    """Most MiB of shards in memory, read ahead of their use; 0: read when it is needed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast with float32 master weights."""
    device: str = "auto"
    """`cpu`, `cuda`, ...; `auto`: the GPU if there is one."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Initial weights and order of the samples."""
    time_limit: float | None = Field(None, gt=0)
    """Seconds after which a checkpoint is saved and the run leaves with exit code 5."""

    @model_validator(mode="after")
    def _one_norm(self) -> "TrainConfig":
        if self.norm_before_fc and self.fc_norm:
            raise ValueError("norm_before_fc and fc_norm exclude each other")
        return self


class ExportConfig(Config):
    """`specpipe export`: write the artifact and prove it."""

    checkpoint: Location
    """Run directory (its best checkpoint, else the latest), or one checkpoint in it."""
    out: Location
    """Folder of the artifact: `checkpoint/`, validation.json, README.md."""
    format: Literal["speculators"] = "speculators"
    """Layout of the artifact."""
    validation: tuple[ValidationLevel, ...] = Field(("structure", "replay"), min_length=1)
    """Proofs to give."""
    dump: Location | None = None
    """Dump whose samples are replayed; default: the one that the run evaluated on."""
    target: Location | None = None
    """Target for `serve` and for the artifact's config; default: as recorded in the dump."""
    speculative_tokens: int | None = Field(None, ge=1)
    """Draft tokens written into the artifact; default: the number of trained heads."""
    replay_samples: int | None = Field(None, gt=0)
    """Most samples that `replay` reads; default: all that the run evaluated on."""
    serve_data: Location | None = None
    """JSONL (messages or pretokenised) whose prompts `serve` decodes; default: the dump's."""
    serve_prompts: int = Field(100, gt=0)
    """Prompts that `serve` decodes."""
    serve_max_tokens: int = Field(128, gt=1)
    """Tokens decoded per prompt."""
    serve_speculative_tokens: tuple[DraftTokens, ...] = Field((3,), min_length=1)
    """Numbers of draft tokens that `serve` measures."""
    seed: int = Field(0, ge=0)
    """Seed of the sampling in `serve`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target."""
