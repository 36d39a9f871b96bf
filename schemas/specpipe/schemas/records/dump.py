"""The dump format, version 1, as types: `dump.json`, shard manifests, `index.json`, arrays.

`docs/dump-format.md` is the normative text.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from specpipe.schemas.base import Record

LOGITS_MODES = r"^(final|full|topk:[1-9][0-9]{0,5})$"

DUMP_FILE = "dump.json"
INDEX_FILE = "index.json"
VOCAB_FILE = "vocab.parquet"
SAMPLES_FILE = "samples.parquet"
REJECTED_FILE = "rejected.jsonl"
TARGET_FOLDER = "target"
HEAD_FILE = "head.json"
HEAD_WEIGHTS_FILE = "head.safetensors"
MTP_FILE = "mtp.json"
MTP_WEIGHTS_FILE = "mtp.safetensors"
LAST_LAYER_FILE = "last_layer.safetensors"
AUX_SCALES_FILE = "aux_scales.safetensors"
"""int8 states only: the scale of each channel of each auxiliary layer."""

CHUNK_TRAILER_BYTES = 4
"""A chunk object ends in the crc32c of its payload: 4 bytes, little endian."""

CHUNK_TARGET_BYTES = 48 * 2**20

MOST_SHARD_TOKENS = 2**24
"""Of one shard: its table of samples is read whole."""

MOST_SHARD_SAMPLES = 2**18

MOST_VOCAB = 2**24
"""Tokens of a vocabulary: of each there are statistics, which are kept whole."""

MOST_LAYERS = 2**14


class Sealed(Record):
    """A record with a hash of its other fields: damage to the record differs from damage to the
    objects that it lists. A missing hash is computed; a wrong hash is an error."""

    content_sha256: str = ""

    @model_validator(mode="after")
    def _seal(self) -> "Sealed":
        content = canonical_sha256(self.model_dump(mode="json", exclude={"content_sha256"}))
        if not self.content_sha256:
            # The class is frozen for everybody else.
            object.__setattr__(self, "content_sha256", content)
        elif self.content_sha256 != content:
            raise ValueError("the contents do not match their content_sha256")
        return self


class TargetIdentity(Record):
    """What makes a target the same target."""

    name: str
    """Path or hub id, as given."""
    revision: str | None = None
    architecture: str
    """First entry of the config's `architectures`."""
    config_sha256: str
    weights_sha256: str
    """Hash over the names, shapes, dtypes and bytes of all weights."""
    tokenizer_sha256: str
    hidden_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0, le=MOST_VOCAB)
    num_layers: int = Field(gt=0, le=MOST_LAYERS)


class TextOrigin(Record):
    """How the text was written; the replay is exact only at the same temperature."""

    kind: Literal["given", "generated"] = "given"
    temperature: float | None = Field(None, ge=0)
    """Temperature at which the target generated the text; None for given text."""
    top_p: float | None = None
    """Below 1, the text is cut off from the target's own distribution, and no replay is exact."""
    stated: bool = False
    """Whether the user said so (`text_temperature`), instead of the dump having generated it."""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    samples_per_prompt: int | None = None

    @property
    def is_planned(self) -> bool:
        """Whether the plan holds prompts, whose continuations the shards hold."""
        return self.kind == "generated" and not self.stated

    @property
    def is_sampled(self) -> bool:
        """Whether the text is a sample of the target's own distribution, at temperature 1."""
        return self.kind == "generated" and self.temperature == 1 and self.top_p in (None, 1.0)

    @property
    def is_greedy(self) -> bool:
        return self.kind == "generated" and self.temperature == 0

    @property
    def in_words(self) -> str:
        if self.temperature is None:
            return self.kind
        words = [f"{self.kind} at temperature {self.temperature:g}"]
        if self.stated:
            words.append("as stated")
        if self.top_p not in (None, 1.0):
            words.append(f"top-p {self.top_p:g}")
        if self.max_tokens is not None:
            words.append(f"at most {self.max_tokens:,} tokens a turn")
        if self.stop:
            words.append(f"stopped at {', '.join(map(repr, self.stop))}")
        if self.samples_per_prompt is not None:
            words.append(f"{self.samples_per_prompt:,} per prompt")
        if self.seed is not None:
            words.append(f"seed {self.seed}")
        return ", ".join(words)


class DumpIdentity(Record):
    """`dump.json`: two dumps with equal identities hold the same data."""

    format_version: Literal[1] = 1
    target: TargetIdentity
    layers: tuple[int, ...] = Field(min_length=1)
    """Auxiliary layer ids: id k is the residual stream that enters decoder layer k."""
    layer_numbering: Literal["vllm"] = "vllm"
    final_state: Literal["pre_norm"] = "pre_norm"
    states_dtype: Literal["bfloat16", "int8"] = "bfloat16"
    """How auxiliary layers are stored; int8 goes with `aux_scale` and scales of the channels."""
    compute_dtype: str
    """Dtype in which the target ran."""
    backend: Literal["hf", "vllm"] = "hf"
    """What ran the target: their states agree within rounding, not bit by bit."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Options of the engine that may change the states by more than rounding, by its own names."""
    shard_format: Literal["zarr", "parquet"] = "zarr"
    logits: str = Field("final", pattern=LOGITS_MODES)
    compression: Literal["none", "zstd"] = "none"
    chunk_tokens: int = Field(gt=0)
    """Most rows of one chunk of an auxiliary layer; a chunk of another array has no more bytes than
    this one, or one row."""
    shard_tokens: int = Field(gt=0)
    context_length: int = Field(gt=1)
    input_sha256: str
    """Hash over the accepted samples, in order."""
    text: TextOrigin = TextOrigin()
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template for all conversations; not written where there are none."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if not values.get("chat_template_kwargs"):
            values.pop("chat_template_kwargs", None)
        return values

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if list(layers) != sorted(set(layers)):
            raise ValueError("layer ids must ascend without repetition")
        return layers

    @property
    def topk(self) -> int | None:
        """N of the logits mode `topk:N`."""
        return int(self.logits.removeprefix("topk:")) if self.logits.startswith("topk:") else None

    @property
    def fingerprint(self) -> str:
        """Hash of the identity; manifests and checkpoints carry it."""
        return canonical_sha256(self.model_dump(mode="json"))


class DumpHeader(Record):
    """The contents of `dump.json`: the identity, and what wrote it (not part of the identity)."""

    identity: DumpIdentity
    fingerprint: str
    specpipe_version: str


class HeadRecord(Record):
    """`target/head.json`: what `head.safetensors` holds, and whose it is.

    Scale, soft-cap and norm are for the reader: the head runs the architecture's own code.
    """

    format_version: Literal[1] = 1
    model_type: str
    architecture: str
    """Class of the causal language model."""
    dtype: str
    """Dtype of the stored tensors: the one in which the target ran."""
    norm: str
    """Class of the final norm."""
    norm_eps: float | None
    logit_scale: float | None
    """Factor on the logits, None where the architecture has none."""
    logit_softcap: float | None
    """Logits are cap * tanh(logits / cap), None where the architecture has none."""
    lm_head_path: str
    """Name of the output layer inside the architecture."""
    lm_head: Literal["lm_head.weight", "embed_tokens.weight"]
    """The tensor that holds the lm_head; the embedding's where the two are tied."""


class MtpRecord(Record):
    """`target/mtp.json`: what `mtp.safetensors` holds of the target's own MTP layer.

    Dumps of targets of other families do not have it, nor do those of earlier versions.
    """

    format_version: Literal[1] = 1
    family: str
    num_layers: int
    """MTP layers in the target's checkpoint, of which the first is stored; 0: it has none."""
    tensors: tuple[str, ...]
    """Names of the stored tensors, those of the checkpoint; without any there is no file."""


class ObjectEntry(Record):
    """One stored object: its key relative to the dump's root, size in bytes and crc32c.

    For a chunk (`trailer_bytes` 4) the crc32c is that of the payload, which the object repeats
    in its last four bytes: the crc over payload and its own crc is a constant.
    """

    key: str
    size: int = Field(ge=0, lt=2**53)
    crc32c: int = Field(ge=0, lt=2**32)
    trailer_bytes: Literal[0, 4] = 0

    @field_validator("key")
    @classmethod
    def _inside_root(cls, key: str) -> str:
        parts = key.split("/")
        if not key or "\\" in key or ":" in key or any(p in ("", ".", "..") for p in parts):
            raise ValueError(f"object key {key!r} leaves the dump's root")
        return key


class GenerationCounts(Record):
    """Counts of the turns that the target wrote, by how each ended."""

    num_turns: int = Field(0, ge=0)
    num_new_tokens: int = Field(0, ge=0)
    """The tokens that ended turns included."""
    num_stopped: int = Field(0, ge=0)
    """Turns that the target, or a stop text, ended."""
    num_max_tokens: int = Field(0, ge=0)
    """Turns cut off at `max_tokens`."""
    num_context_length: int = Field(0, ge=0)
    """Turns cut off where the context was full."""
    num_empty: int = Field(0, ge=0)
    """Turns that hold nothing but the token that ended them."""
    num_broken_off: int = Field(0, ge=0)
    """Conversations without all of their turns, since one was cut off or the context was full."""
    num_rewritten: int = Field(0, ge=0)
    """Conversations without all of their turns, since the chat template writes an earlier turn
    otherwise than the target did."""

    def plus(self, other: "GenerationCounts") -> "GenerationCounts":
        ours, theirs = self.model_dump(), other.model_dump()
        return GenerationCounts(**{name: ours[name] + theirs[name] for name in ours})


class ShardManifest(Sealed):
    """`shards/SSSSSS.manifest.json`: which attempt at a shard counts, and every object of it."""

    format_version: Literal[1] = 1
    shard_id: int = Field(ge=0)
    attempt: str = Field(pattern=r"^[0-9a-f]{8,32}$")
    fingerprint: str
    num_samples: int = Field(ge=0)
    num_tokens: int = Field(ge=0)
    num_rows: int = Field(ge=0)
    """Verifier rows."""
    chunk_rows: dict[str, PositiveInt]
    """Rows of a chunk of each array; the last chunk may hold fewer."""
    aux_scales_crc32c: int | None = Field(None, ge=0, lt=2**32)
    """int8 states only: of the aux_scales.safetensors that the states were divided by."""
    aux_error: tuple[float, ...] | None = None
    """int8 states only: norm of the rounding error over norm of the states, per layer."""
    generation: GenerationCounts | None = None
    """Text that the target wrote into the dump only."""
    objects: tuple[ObjectEntry, ...]

    @property
    def folder(self) -> str:
        return shard_folder(self.shard_id, self.attempt)

    def entry(self, name: str) -> ObjectEntry | None:
        """The object `name` of this shard (relative to its folder), None if not listed."""
        key = f"{self.folder}/{name}"
        return next((entry for entry in self.objects if entry.key == key), None)


class DumpTotals(Record):
    """Counts over a whole dump."""

    num_shards: int
    num_samples: int
    num_tokens: int
    num_rows: int
    num_rejected: int
    num_bytes: int
    generation: GenerationCounts | None = None
    """Text that the target wrote into the dump only."""


class DumpIndex(Sealed):
    """`index.json`: present means complete; covers every file that no manifest covers."""

    format_version: Literal[1] = 1
    fingerprint: str
    totals: DumpTotals
    objects: tuple[ObjectEntry, ...]


def plan_key(shard_id: int) -> str:
    return f"plan/{shard_id:06d}.parquet"


def manifest_key(shard_id: int) -> str:
    return f"shards/{shard_id:06d}.manifest.json"


def shard_folder(shard_id: int, attempt: str) -> str:
    return f"shards/{shard_id:06d}-{attempt}"


def chunk_tokens(hidden_size: int, itemsize: int = 2) -> int:
    """Rows of one chunk: the power of two nearest to 48 MiB over the bytes of one row."""
    rows = CHUNK_TARGET_BYTES / (hidden_size * itemsize)
    lower = 1 << max(0, int(rows).bit_length() - 1)
    return lower if rows - lower <= 2 * lower - rows else 2 * lower


def equal_chunks(num_rows: int, most_rows: int) -> int:
    """Rows of a chunk of an axis of `num_rows`: equal chunks, none over `most_rows`.

    Equal chunks keep the padding of the last one under a row per chunk.
    """
    num_chunks = max(1, -(-num_rows // most_rows))
    return max(1, -(-num_rows // num_chunks))


def canonical_sha256(value: Any) -> str:
    """sha256 of a JSON value with sorted keys and no white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
