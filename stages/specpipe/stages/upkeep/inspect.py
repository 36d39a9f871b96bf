"""`specpipe inspect`: the contents of a dump, for a person.

Legend: T tokens, S verifier rows, L aux layers, H hidden size, V vocabulary, D draft vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce

import numpy as np

from specpipe.schemas.records.dump import DumpIdentity, GenerationCounts, ShardManifest
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.int8_states import widened
from specpipe.stages.storage.shard.samples import StoredSample
from specpipe.stages.storage.shard.states import SampleStates
from specpipe.stages.target.files.stored_tokenizer import stored_tokenizer
from specpipe.stages.text.mask.shown import Decode, Pieces, masked_text

_NUM_MEASURED = 4
"""Samples over which the size of the states is taken, or more where more are shown."""


@dataclass(frozen=True, slots=True)
class LayerSize:
    """How large the states are: root mean square and largest absolute value."""

    name: str
    rms: float
    largest: float
    error: float | None
    """int8 states: norm of the rounding error over norm of the states, as measured in the dump."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample as text: pieces with whether they are supervised."""

    sample_id: str
    source: str
    num_tokens: int
    num_supervised: int
    multiplicity: int
    mean_logprob: float
    """The verifier's mean log-probability of the supervised tokens."""
    pieces: Pieces


@dataclass(frozen=True, slots=True)
class Inspection:
    url: str
    identity: DumpIdentity
    fingerprint: str
    specpipe_version: str
    complete: bool
    num_shards: int
    """Committed shards; the counts are over them."""
    num_planned_shards: int
    num_samples: int
    num_tokens: int
    num_rows: int
    num_rejected: int | None
    """None while the dump is unfinished."""
    num_bytes: int
    generation: dict[str, int] | None
    """What became of the turns that the target wrote (GenerationCounts); None for given text."""
    layers: tuple[LayerSize, ...]
    """Of the first few samples; empty where no shard is committed."""
    attainable: dict[int, float]
    """Draft vocabulary size D -> m, the verifier's probability on the D most probable tokens."""
    samples: tuple[ShownSample, ...]


def inspect(url: str, num_samples: int = 1) -> Inspection:
    """Look into a dump, finished or not; raises what `Dump.open` raises.

    `num_samples` of its samples are shown, as far as there are so many.
    """
    dump = Dump.open(url, allow_unfinished=True)
    manifests = dump.manifests.values()
    loaded = _some_samples(dump, max(num_samples, _NUM_MEASURED))
    decode = _decoder(dump) if num_samples else None
    return Inspection(
        url=dump.folder.url,
        identity=dump.identity,
        fingerprint=dump.header.fingerprint,
        specpipe_version=dump.header.specpipe_version,
        complete=dump.index is not None,
        num_shards=len(manifests),
        num_planned_shards=len(dump.folder.list("plan")),
        num_samples=sum(manifest.num_samples for manifest in manifests),
        num_tokens=sum(manifest.num_tokens for manifest in manifests),
        num_rows=sum(manifest.num_rows for manifest in manifests),
        num_rejected=dump.index.totals.num_rejected if dump.index else None,
        num_bytes=dump.num_bytes,
        generation=_generation(manifests),
        layers=_layer_sizes(dump.identity, [states for _, states in loaded], manifests),
        attainable=dump.vocab().attainable_mass(),
        samples=tuple(_show(*pair, decode) for pair in loaded[len(loaded) - num_samples :])
        if num_samples
        else (),
    )


def _generation(manifests: Collection[ShardManifest]) -> dict[str, int] | None:
    counted = [manifest.generation for manifest in manifests if manifest.generation is not None]
    return reduce(GenerationCounts.plus, counted).model_dump() if counted else None


def _some_samples(dump: Dump, number: int) -> list[tuple[StoredSample, SampleStates]]:
    """The longest few samples of the first shards that have any, the longest of a shard last."""
    chosen: list[tuple[StoredSample, SampleStates]] = []
    for shard_id, manifest in dump.manifests.items():
        if len(chosen) >= number:
            break
        if manifest.num_samples:
            reader = dump.shard(shard_id)
            samples = reader.samples()[-(number - len(chosen)) :]
            chosen += [(sample, reader.read_sample(sample)) for sample in samples]
    return chosen


def _layer_sizes(
    identity: DumpIdentity, states: list[SampleStates], manifests: Collection[ShardManifest]
) -> tuple[LayerSize, ...]:
    if not states:
        return ()
    aux_TLH = np.concatenate([widened(s.aux_TLH) for s in states])
    sizes = [
        _layer_size(f"layer {layer}", aux_TLH[:, at], _error(manifests, at))
        for at, layer in enumerate(identity.layers)
    ]
    finals = [widened(s.final_SH) for s in states if s.final_SH is not None]
    return (*sizes, *([_layer_size("final", np.concatenate(finals), None)] if finals else []))


def _layer_size(
    name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], error: float | None
) -> LayerSize:
    if not values.size:
        return LayerSize(name, 0.0, 0.0, error)
    rms = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
    return LayerSize(name, rms, float(np.abs(values).max()), error)


def _error(manifests: Collection[ShardManifest], layer: int) -> float | None:
    """Root mean square over the shards of a layer's relative error, weighted by tokens."""
    measured = [(m.num_tokens, m.aux_error[layer]) for m in manifests if m.aux_error]
    num_tokens = sum(tokens for tokens, _ in measured)
    if not num_tokens:
        return None
    return float(np.sqrt(sum(tokens * error**2 for tokens, error in measured) / num_tokens))


def _show(sample: StoredSample, states: SampleStates, decode: Decode | None) -> ShownSample:
    return ShownSample(
        sample_id=sample.sample_id,
        source=str(sample.source),
        num_tokens=sample.num_tokens,
        num_supervised=int(sample.loss_mask.sum()),
        multiplicity=sample.multiplicity,
        mean_logprob=float(states.token_logprob_S.mean()) if sample.num_rows else 0.0,
        pieces=masked_text(sample.input_ids, sample.loss_mask, decode),
    )


def _decoder(dump: Dump) -> Decode | None:
    """What decodes the dump's tokens; None without a tokenizer, or one that needs its own code."""
    tokenizer = stored_tokenizer(dump)
    return None if tokenizer is None else lambda ids: str(tokenizer.decode(ids))
