"""The configuration of each stage: frozen, unknown fields are errors, a line on every field."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from specpipe.schemas.base import Record
from specpipe.schemas.location import without_credentials
from specpipe.schemas.records.dump import LOGITS_MODES, MOST_SHARD_TOKENS
from specpipe.schemas.settings.chat_template import not_to_be_set

ValidationLevel = Literal["structure", "replay", "serve"]
DraftTokens = Annotated[int, Field(ge=1)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
DraftSampleMethod = Literal["probabilistic", "greedy"]
"""Whether drafts are drawn from the drafter at temperatures above 0; vLLM's name for it."""

_OF_A_SERVER = ("serve_model", "serve_draft_sample_method")
_OF_AN_ENGINE = ("serve_speculative_tokens", "serve_batch_sizes", "seed")

_SERVER = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")


def _no_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _logits_mode(value: str) -> str:
    if not re.fullmatch(LOGITS_MODES, value):
        raise ValueError("give final, full, or topk:N with the number to keep, as topk:64")
    return value


def several(value: Any) -> Any:
    """A lone text where several may stand."""
    return (value,) if isinstance(value, str) else value


LogitsMode = Annotated[str, AfterValidator(_logits_mode)]
Location = Annotated[str, AfterValidator(_no_blank)]
"""A local path or an fsspec URL."""


def _holds_bool(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return (
        any(map(_holds_bool, value)) if isinstance(value, list | tuple) else isinstance(value, bool)
    )


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation)))


def _has_settings(field: FieldInfo) -> bool:
    kinds = (field.annotation, *get_args(field.annotation))
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


class Config(Record):
    """Settings of a command; each field's docstring is the help of its flag."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true for 1; in a file it is a mistake."""
        field = cls.model_fields[str(info.field_name)]
        if _has_settings(field) and isinstance(value, Mapping):
            return value  # its own settings are asked one by one
        if _holds_bool(value) and not _takes_bool(field.annotation):
            instead = ": give its settings, or {} for the defaults" if _has_settings(field) else ""
            raise ValueError(f"true and false are no values of this setting{instead}")
        return value

    def without_credentials(self) -> Self:
        """The configuration as it may be written down: no credentials in its URLs."""
        return self.model_validate_json(without_credentials(self.model_dump_json()))


class GenerateConfig(Config):
    """`specpipe dump --generate`: the target writes the assistant turns itself."""

    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: probability of the tokens to sample from; below 1 no replay is exact."""
    max_tokens: int = Field(512, gt=0)
    """Most tokens of one assistant turn."""
    stop: tuple[str, ...] = ()
    """Stop string: ends a turn, besides the target's own end of turn, and stays in the text; may be
    given several times."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the sampling; the seed of each turn follows from it and from the sample."""
    samples_per_prompt: int = Field(1, gt=0)
    """Number of answers to each prompt."""


class InputConfig(Config):
    """Input text, the target that it is for, and how it is tokenised."""

    target: Location
    """Local folder or hub id of the target."""
    revision: str | None = None
    """Revision of a hub target."""
    data: Annotated[tuple[Location, ...], BeforeValidator(several)] = Field(min_length=1)
    """JSONL or Parquet file, folder or glob, any fsspec URL; may be given several times."""
    loss_mask: Literal["auto", "markers", "boundaries"] = "auto"
    """How the assistant's tokens are found in a conversation: by the template's {% generation %}
    markers, or by rendering it with and without each turn. [default: markers where there are any]
    """
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, e.g. '{"enable_thinking": false}'; a row's own win."""
    context_length: int | None = Field(None, gt=1)
    """Truncate longer samples to this many tokens. [default: the target's maximum]"""
    max_rejected: int = Field(0, ge=0)
    """Number of malformed inputs that are tolerated before the command stops."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _template_variables(cls, values: dict[str, Any]) -> dict[str, Any]:
        if (name := not_to_be_set(values)) is not None:
            raise ValueError(f"{name!r} is no variable that can be set")
        try:
            json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"give values that JSON can hold ({error})") from None
        return values


class PrepareConfig(InputConfig):
    """`specpipe prepare`: tokenise once, into a file of pretokenised samples."""

    out: Location
    """File to write, a path or an fsspec URL: .jsonl, .jsonl.gz, .jsonl.zst or .parquet."""


class DumpConfig(InputConfig):
    """`specpipe dump`: run the target once and write its states to a dump."""

    out: Location
    """Root of the dump: a path or an fsspec URL."""
    context_limit: int | None = Field(None, gt=1)
    """Upper bound of the context length where --context-length is not given."""
    backend: Literal["auto", "hf", "vllm"] = "auto"
    """Engine that runs the target; hf: transformers. [default: vLLM where it is installed and knows
    the target]"""
    engine: dict[str, Any] = Field(default_factory=dict)
    """An option of vLLM by its own name, e.g. tensor_parallel_size=2; may be given several times.
    """
    generate: GenerateConfig | None = None
    """Let the target write the assistant's turns, and capture its states in the same pass; the data
    gives the prompts. The flags below need --generate, or `generate:` in the file."""
    format: Literal["zarr", "parquet"] = "zarr"
    """Storage format of the shards."""
    logits: LogitsMode = "final"
    """How the target's logits are stored. final: as final states, from which they follow exactly;
    topk:N: the N largest; full: all."""
    states: Literal["bfloat16", "int8"] = "bfloat16"
    """Number format of the auxiliary states. int8 takes half the space; its error is measured and
    stored."""
    compression: Literal["none", "zstd"] = "none"
    """Lossless compression; zstd saves about a quarter of the space for several times the CPU."""
    layers: tuple[int, ...] | None = None
    """Auxiliary layers, e.g. 2,16,29; id k: the state that enters decoder layer k. [default: 2,
    n//2, n-1]"""
    for_drafters: Annotated[tuple[str, ...], BeforeValidator(several)] = ()
    """Store the layers that these drafters read (train --drafter), instead of --layers."""
    text_temperature: float | None = Field(None, ge=0)
    """Sampling temperature at which this target wrote the answers of the data (0: greedy). The
    replay is exact only with it."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype in which the target runs. [default: the checkpoint's own]"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ... [default: a GPU if there is one]"""
    batch_tokens: int = Field(8192, gt=0)
    """Most tokens, padding included, of one forward pass."""
    shard_tokens: int = Field(32768, gt=0, le=MOST_SHARD_TOKENS)
    """Most tokens of a shard, the unit of work and of resume."""
    chunk_tokens: int | None = Field(None, gt=0)
    """Most rows of a chunk. [default: about 48 MiB]"""
    write_buffer_mib: int = Field(256, gt=0)
    """Most MiB of states that wait to be written while the target runs on."""
    staging_mib: int = Field(1024, gt=0)
    """Most MiB of states in shared memory between vLLM and the writer; one text always fits."""
    executor: Literal["local", "ray"] = "local"
    """Where workers run: as processes of this machine, or as actors of a Ray cluster."""
    workers: int = Field(1, gt=0)
    """Number of engines that this command starts."""
    worker_index: int | Literal["auto"] | None = None
    """Number of this worker, from 0, of --worker-count: it does its share alone. auto: read from
    SLURM or a Kubernetes indexed job."""
    worker_count: int | None = Field(None, gt=0)
    """Number of commands that share the dump."""
    time_limit: float | None = Field(None, gt=0)
    """Seconds until the command stops with exit code 5; finished shards stay."""
    require_servable: bool = False
    """Exit code 2 where vLLM serves no drafters for the target. [default: a warning]"""

    @field_validator("worker_index", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if isinstance(value, int | None) or value == "auto" or str(value).isdecimal():
            return value
        raise ValueError("give a number from 0 on, or auto")

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> "DumpConfig":
        if self.generate is not None and self.text_temperature is not None:
            raise ValueError("text_temperature is for text that is given, not generated")
        return self

    @model_validator(mode="after")
    def _one_way_to_choose_layers(self) -> "DumpConfig":
        if self.layers is not None and self.for_drafters:
            raise ValueError(
                "which layers are stored is said twice; give one of --layers and --for"
            )
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


class ServeConfig(Config):
    """What validation level `serve` decodes, and how."""

    serve_data: Location | None = None
    """JSONL (messages or pretokenised) whose prompts `serve` decodes. [default: the dump's]"""
    serve_prompts: int = Field(100, gt=0)
    """Number of prompts that `serve` decodes."""
    serve_max_tokens: int = Field(128, gt=1)
    """Tokens decoded per prompt."""
    serve_speculative_tokens: tuple[DraftTokens, ...] = Field((3,), min_length=1)
    """Numbers of draft tokens that `serve` measures."""
    serve_batch_sizes: tuple[BatchSize, ...] = Field((1, 8), min_length=1)
    """Batch sizes at which `serve` times steps; the first decides the number of draft tokens."""
    seed: int = Field(0, ge=0)
    """Seed of the sampling in `serve`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the target."""


class ServerConfig(ServeConfig):
    """Settings of level `serve` for a server that is already running."""

    serve_url: Location | None = None
    """A vLLM server that `serve` measures, e.g. http://host:8000. [default: its own engine]"""
    serve_model: str | None = None
    """Model name in the server's API. [default: the only one]"""
    serve_draft_sample_method: DraftSampleMethod = "probabilistic"
    """Draft sampling method that the server was started with."""

    @field_validator("serve_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        if url is not None and not _SERVER.fullmatch(url):
            raise ValueError(
                "give http://HOST:PORT; a token belongs into the environment variable"
                " SPECPIPE_SERVE_TOKEN"
            )
        return url


class ExportConfig(ServeConfig):
    """`specpipe export`: write the artifact and prove it."""

    checkpoint: Location
    """Run directory (its best checkpoint, else the latest) or one checkpoint in it."""
    out: Location
    """Folder to write the artifact to."""
    format: str | None = None
    """Layout of the artifact: docs/export.md names each drafter's. [default: speculators, for vLLM,
    where the drafter has it]"""
    with_embedding: bool = False
    """Write the target's embedding too, for engines that do not share it."""
    with_lm_head: bool = True
    """Write the lm_head. Without it the engine uses the target's, which the drafter must share."""
    validation: tuple[ValidationLevel, ...] = Field(("structure", "replay"), min_length=1)
    """Proofs to give."""
    dump: Location | None = None
    """Dump to replay on. [default: the one that the run evaluated on]"""
    target: Location | None = None
    """Target for `serve` and for the artifact's config; its weights must be those of the dump's
    target. [default: the dump's]"""
    speculative_tokens: int | None = Field(None, ge=1)
    """Number of draft tokens written into the artifact. [default: the best by the costs that
    `serve` measures or --step-cost gives; without costs the number of trained heads]"""
    replay_samples: int | None = Field(None, gt=0)
    """Most samples of `replay`. [default: all]"""
    step_cost: float | None = Field(None, ge=0)
    """Cost of one more draft token, in steps of the target; used where `serve` has not timed it."""
    time_limit: float | None = Field(None, gt=0)
    """Seconds; then leave with exit code 5."""
    require_servable: bool = False
    """Exit code 2 where vLLM does not serve the drafter. [default: a warning]"""

    def settings(self) -> Self:
        """The settings that decide the result, without credentials."""
        free = {"time_limit": None, "require_servable": False}
        return self.without_credentials().model_copy(update=free)


class ConvertConfig(Config):
    """`specpipe convert`: another program's artifact in a format that engines load."""

    source: Location
    """Folder of the artifact: SpecForge's, ModelOpt's, EAGLE's, speculators' or ours."""
    out: Location
    """Folder to write; the engine loads it."""
    format: str
    """Layout to write; speculators: for vLLM; stitched: a copy of the target with its MTP layer
    replaced. docs/export.md names each drafter's others."""
    target: Location | None = None
    """Target, of which the config is read. [default: the target that SRC names]"""
    revision: str | None = None
    """Revision of a hub target."""
    speculative_tokens: int | None = Field(None, ge=1)
    """Number of draft tokens written into the artifact. [default: SRC's, or 3]"""
    trust_remote_code: bool = False
    """Run Python code that comes with the target."""


class ValidateConfig(ServerConfig):
    """`specpipe validate`: prove an existing artifact."""

    artifact: Location
    """Folder of the artifact, or of an export."""
    dump: Location
    """Dump of the artifact's target, to replay on."""
    validation: tuple[ValidationLevel, ...] = Field(("structure", "replay"), min_length=1)
    """Proofs to give."""
    target: Location | None = None
    """Target for `serve`. [default: the dump's]"""
    speculative_tokens: int | None = Field(None, ge=1)
    """Most draft tokens of `replay`. [default: the artifact's, or 3]"""
    replay_samples: int | None = Field(None, gt=0)
    """Most samples of `replay`. [default: all]"""
    out: Location | None = None
    """File to write the findings to (JSON)."""

    @model_validator(mode="after")
    def _a_server_for_its_level(self) -> "ValidateConfig":
        if self.serve_url is not None and "serve" not in self.validation:
            raise ValueError("serve_url is for level serve: name it in validation too")
        ignored = _OF_A_SERVER if self.serve_url is None else _OF_AN_ENGINE
        fields = type(self).model_fields
        for name in ignored:
            if getattr(self, name) != fields[name].default:
                if self.serve_url is None:
                    raise ValueError(f"{name} needs serve_url: give both or neither")
                raise ValueError(f"{name} is the server's own with serve_url: leave it out")
        return self


class ReportConfig(Config):
    """`specpipe report`: one page with the results of a run."""

    run: Location
    """Run directory of `specpipe train`."""
    out: Location
    """File to write the page to, a path or an fsspec URL."""
    artifact: Location | None = None
    """Folder that `specpipe export` wrote from the run."""
    dump: Location | None = None
    """Dump to draft on. [default: the one that the run evaluated on]"""
    samples: int = Field(64, ge=0)
    """Most held-out samples to draft on, for acceptance by kind of token; 0: none."""
    texts: int = Field(4, ge=0)
    """Number of samples printed as text."""
