"""`specpipe inspect`: what a dump is and holds, for a person.

Legend: T tokens, S verifier rows, L aux layers, H hidden size, V vocabulary, D draft vocabulary.
"""

import tempfile
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from specpipe.schemas.dump import TARGET_FOLDER, DumpIdentity
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.samples import StoredSample
from specpipe.stages.storage.states import U16, SampleStates
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.target.location import CONFIG_FILE, TOKENIZER_FILES

_NUM_SAMPLES = 4
_SMALLEST_VOCAB = 256
_MOST_TOKENS_SHOWN = 400


@dataclass(frozen=True, slots=True)
class LayerSize:
    """How large the states are: root mean square and largest absolute value."""

    name: str
    rms: float
    largest: float


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
    pieces: tuple[tuple[str, bool], ...]


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
    layers: tuple[LayerSize, ...]
    """Of the first few samples; empty where no shard is committed."""
    attainable: dict[int, float]
    """Draft vocabulary size D -> m, the verifier's probability on the D most probable tokens."""
    sample: ShownSample | None


def inspect(url: str) -> Inspection:
    """Look into a dump, finished or not; raises what `Dump.open` raises."""
    dump = Dump.open(url, allow_unfinished=True)
    manifests = dump.manifests.values()
    loaded = _first_samples(dump)
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
        layers=_layer_sizes(dump.identity, [states for _, states in loaded]),
        attainable=attainable_mass(dump.vocab()),
        sample=_show(*loaded[-1], _tokenizer(dump)) if loaded else None,
    )


def attainable_mass(vocab: VocabStatistics) -> dict[int, float]:
    """m for draft vocabularies of 256, 512, ... and V tokens, the largest acceptance they allow."""
    mass_V = np.sort(vocab.mass_V)[::-1]
    total = mass_V.sum()
    if total == 0:
        return {}
    sizes = [1 << k for k in range(_SMALLEST_VOCAB.bit_length() - 1, len(mass_V).bit_length())]
    sizes = [size for size in sizes if size < len(mass_V)] + [len(mass_V)]
    return {size: float(mass_V[:size].sum() / total) for size in sizes}


def _first_samples(dump: Dump) -> list[tuple[StoredSample, SampleStates]]:
    """The longest few samples of the first shard that has any, ascending by length."""
    for shard_id, manifest in dump.manifests.items():
        if manifest.num_samples:
            reader = dump.shard(shard_id)
            samples = reader.samples()[-_NUM_SAMPLES:]
            return [(sample, reader.read_sample(sample)) for sample in samples]
    return []


def _layer_sizes(identity: DumpIdentity, states: list[SampleStates]) -> tuple[LayerSize, ...]:
    if not states:
        return ()
    aux_TLH = np.concatenate([_widened(s.aux_TLH) for s in states])
    final_SH = np.concatenate([_widened(s.final_SH) for s in states])
    named = [(f"layer {layer}", aux_TLH[:, at]) for at, layer in enumerate(identity.layers)]
    return tuple(
        LayerSize(name, float(np.sqrt(np.square(values).mean())), float(np.abs(values).max()))
        for name, values in [*named, ("final", final_SH)]
    )


def _widened(bits: U16) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _show(
    sample: StoredSample, states: SampleStates, tokenizer: PreTrainedTokenizerBase | None
) -> ShownSample:
    tokens = zip(sample.input_ids.tolist(), sample.loss_mask.tolist(), strict=True)
    pieces = []
    for supervised, run in groupby(islice(tokens, _MOST_TOKENS_SHOWN), key=lambda token: token[1]):
        ids = [token_id for token_id, _ in run]
        text = " ".join(map(str, ids)) if tokenizer is None else str(tokenizer.decode(ids))
        pieces.append((text, bool(supervised)))
    return ShownSample(
        sample_id=sample.sample_id,
        source=str(sample.source),
        num_tokens=sample.num_tokens,
        num_supervised=int(sample.loss_mask.sum()),
        multiplicity=sample.multiplicity,
        mean_logprob=float(states.token_logprob_S.mean()),
        pieces=tuple(pieces),
    )


def _tokenizer(dump: Dump) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the dump; None if there is none, or none that loads without its own code."""
    target = dump.folder.child(TARGET_FOLDER)
    names = [name for name in target.list() if name in TOKENIZER_FILES]
    if not names:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name in [*names, CONFIG_FILE]:
            (Path(folder) / name).write_bytes(dump.target_file(name))
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False
            )
        except (ValueError, OSError, ImportError):
            return None
        return tokenizer
