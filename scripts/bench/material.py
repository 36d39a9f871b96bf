"""Synthetic shards: states of any size without a target.

The values are normal with channels of very different size, as states are; the mantissa is random,
so compression finds in them what it finds in real states, and no more.

Legend: T tokens, S verifier rows, L aux layers, H hidden, K kept logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specpipe.schemas.records.dump import DumpHeader, DumpIdentity, ShardManifest, TargetIdentity
from specpipe.schemas.records.dump import chunk_tokens as default_chunk_tokens
from specpipe.schemas.records.sample import Sample, Source
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.samples import PlannedSample
from specpipe.stages.storage.shard.scales import AuxScales, write_scales
from specpipe.stages.storage.shard.states import U16, SampleStates
from specpipe.stages.storage.shard.writer import WRITE_BUFFER_BYTES, ShardAttempt, ShardWriter
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.vocab import VocabStatistics

LAYERS = (2, 16, 29)
VOCAB = 32_000

Pair = tuple[PlannedSample, SampleStates]


@dataclass(frozen=True, slots=True)
class ShardSize:
    """What the shards of a measurement are made of."""

    hidden: int
    shard_tokens: int
    sample_tokens: int
    """Tokens of a sample on average; half of them are supervised."""


def identity_of(size: ShardSize, chunk_tokens: int | None = None, **format: Any) -> DumpIdentity:
    """`format`: shard_format, logits, states_dtype, compression, where not the default."""
    return DumpIdentity(
        target=TargetIdentity(
            name="synthetic",
            architecture="LlamaForCausalLM",
            config_sha256="c" * 64,
            weights_sha256="d" * 64,
            tokenizer_sha256="e" * 64,
            hidden_size=size.hidden,
            vocab_size=VOCAB,
            num_layers=32,
        ),
        layers=LAYERS,
        compute_dtype="bfloat16",
        chunk_tokens=chunk_tokens or default_chunk_tokens(size.hidden),
        shard_tokens=size.shard_tokens,
        context_length=4 * size.sample_tokens,
        input_sha256="f" * 64,
        **format,
    )


def pairs(identity: DumpIdentity, size: ShardSize, seed: int) -> Iterator[Pair]:
    """Samples that fill a shard, with their states."""
    rng = np.random.default_rng(seed)
    left = size.shard_tokens
    while left:
        most = min(left, int(rng.integers(size.sample_tokens // 2, 3 * size.sample_tokens // 2)))
        num_tokens = left if left - most < 4 else most
        left -= num_tokens
        yield _pair(identity, rng, num_tokens)


def write_shard(
    folder: Folder,
    identity: DumpIdentity,
    shard_id: int,
    shard: Sequence[Pair],
    scales: AuxScales | None,
    write_buffer_bytes: int = WRITE_BUFFER_BYTES,
) -> ShardManifest:
    """Append and commit."""
    writer = ShardWriter(
        ShardAttempt(folder, shard_id),
        identity,
        sum(sample.num_tokens for sample, _ in shard),
        sum(sample.num_rows for sample, _ in shard),
        scales=scales,
        write_buffer_bytes=write_buffer_bytes,
    )
    for sample, states in shard:
        writer.append(sample, states)
    return writer.commit(VocabStatistics.zeros(VOCAB))


def scales_of(folder: Folder, identity: DumpIdentity, shard: Sequence[Pair]) -> AuxScales | None:
    """Those that int8 states of the shard go with, written to the folder."""
    if identity.states_dtype != "int8":
        return None
    return write_scales(folder, identity, AuxScales.from_states(shard[0][1].aux_TLH))


def write_shards(folder: Folder, identity: DumpIdentity, size: ShardSize, number: int) -> Dump:
    """A dump as its readers need it: shards and their manifests."""
    manifests = {}
    scales = None
    for shard_id in range(number):
        shard = list(pairs(identity, size, shard_id))
        scales = scales or scales_of(folder, identity, shard)
        manifests[shard_id] = write_shard(folder, identity, shard_id, shard, scales)
    return Dump(folder, header_of(identity), manifests, None)


def header_of(identity: DumpIdentity) -> DumpHeader:
    return DumpHeader(identity=identity, fingerprint=identity.fingerprint, specpipe_version="bench")


def state_bytes(shard: Sequence[Pair]) -> int:
    """Bytes of the states as they are handed to the writer."""
    return sum(a.nbytes for _, states in shard for a in states.columns().values())


def _pair(identity: DumpIdentity, rng: np.random.Generator, num_tokens: int) -> Pair:
    mask_T = np.zeros(num_tokens, np.uint8)
    mask_T[num_tokens // 2 :] = 1
    ids_T = rng.integers(0, VOCAB, num_tokens).astype(np.int32)
    sample = PlannedSample.of(Sample(ids_T, mask_T, Source("synthetic", 1)))
    num_rows, hidden = sample.num_rows, identity.target.hidden_size
    columns: dict[str, Any] = {"aux_TLH": _bfloat16(rng, num_tokens, len(LAYERS), hidden)}
    if identity.logits == "final":
        columns["final_SH"] = _bfloat16(rng, num_rows, hidden)
    elif identity.topk is not None:
        shape = num_rows, identity.topk
        columns["topk_ids_SK"] = rng.integers(0, VOCAB, shape).astype(np.int32)
        columns["topk_logits_SK"] = _bfloat16(rng, *shape)
    return sample, SampleStates(
        **columns,
        logz_S=rng.standard_normal(num_rows, np.float32),
        token_logprob_S=-rng.random(num_rows, np.float32),
        argmax_S=rng.integers(0, VOCAB, num_rows).astype(np.int32),
    )


def _bfloat16(rng: np.random.Generator, *shape: int) -> U16:
    values = rng.standard_normal(shape, np.float32)
    # The same channels are large in every sample.
    values *= np.random.default_rng(0).lognormal(size=shape[-1]).astype(np.float32)
    bits: U16 = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return bits
