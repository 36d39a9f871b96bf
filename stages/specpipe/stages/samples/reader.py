"""Samples of dumps as the drafter sees them: listed, and read checked, shard by shard."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import groupby

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.dump import ShardManifest
from specpipe.stages.samples.batch import DrafterSample, supervised_spans
from specpipe.stages.samples.final_layer import with_final_layer
from specpipe.stages.storage.chunks.arrays import verifier_row_bytes
from specpipe.stages.storage.chunks.codec import chunk_codec
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.buffer_pool import BufferPool
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.storage.shard.samples import StoredSample
from specpipe.stages.storage.shard.states import SampleStates

_PARALLEL_READS = 8
SHARDS_TOGETHER = 3
"""Shards that the samples of a step come from, about."""
_SPARSE = 4
"""Samples are read one by one where they are less than this part of their shards."""


@dataclass(frozen=True, order=True, slots=True)
class SampleRef:
    """The place of a sample in a reader's dumps, with what ordering and splitting need."""

    shard_id: int
    """Of the reader's shards: those of its dumps, one dump after the other."""
    index: int
    num_tokens: int
    """After cutting at the context length."""
    prompt_id: str
    weight: float = 1.0
    """Times that an epoch takes it, on average over epochs."""
    num_supervised: int = 0
    """Of its tokens: those with a verifier row."""


Samples = dict[int, DrafterSample]
"""Samples of one shard, by index."""


@dataclass(frozen=True, slots=True)
class WholeShard:
    """A shard in memory; its samples share its arrays."""

    stored: list[StoredSample]
    states: SampleStates
    adds_final: bool = False
    """Whether the final state is the last of the auxiliary layers."""

    def sample(self, ref: SampleRef) -> DrafterSample:
        """Views of the shard's arrays, which live as long as any of them."""
        stored = self.stored[ref.index]
        tokens = slice(stored.offset, stored.offset + stored.num_tokens)
        rows = slice(stored.row_offset, stored.row_offset + stored.num_rows)
        sample = _cut(stored, _part(self.states, tokens, rows), ref.num_tokens)
        return with_final_layer(sample) if self.adds_final else sample


class SampleReader:
    """Samples of a dump, or of several of one target, cut at a context length.

    Any number of threads may read.
    """

    def __init__(
        self,
        dump: Dump,
        context_length: int | None,
        *,
        layers: Sequence[int] | None = None,
        others: Sequence[tuple[Dump, float]] = (),
    ) -> None:
        """Of the auxiliary layers, `layers` are read; None: all. One that the dump lacks is the
        last layer's output, at verifier rows alone (see final_layer.py). `others` come with their
        weights: passes over each of them to one pass over `dump`."""
        self.dump = dump
        self.context_length = context_length
        self._layers = dump.identity.layers if layers is None else tuple(layers)
        self._stored = tuple(layer for layer in self._layers if layer in dump.identity.layers)
        self._adds_final = self._stored != self._layers
        self._shards = [
            (one, shard_id, weight)
            for one, weight in [(dump, 1.0), *others]
            for shard_id in sorted(one.manifests)
        ]

    def refs(self) -> list[SampleRef]:
        """Every sample that has a start to learn from, in the order of the dumps.

        Raises InputError where there is none.
        """
        return list(self._refs)

    @cached_property
    def _refs(self) -> list[SampleRef]:
        # Splitting and evaluating both ask, and every samples.parquet is read and checked for it.
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            try:
                found = list(pool.map(self._shard_refs, range(len(self._shards))))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        refs = [ref for shard in found for ref in shard]
        if not refs:
            raise InputError(
                f"{self.dump.folder.url}: no sample has a supervised token to draft within the"
                " context length; there is nothing to train on"
            )
        return refs

    def has_span(self, refs: Sequence[SampleRef], num_tokens: int) -> bool:
        """Whether one of these samples has so many supervised tokens in a row."""
        for shard_id, of_shard in groupby(sorted(refs), lambda ref: ref.shard_id):
            stored = self._open(shard_id).samples()
            for ref in of_shard:
                spans = supervised_spans(stored[ref.index].loss_mask[: ref.num_tokens])
                if any(end - begin >= num_tokens for begin, end in spans):
                    return True
        return False

    def is_sparse(self, refs: Sequence[SampleRef], num_ranks: int = 1) -> bool:
        """Whether these are so few of their shards' samples that whole shards are a waste.

        Where ranks share them out, the part of one counts; not of chunks that can only be read
        whole, of which each rank would read nearly all, and many of them several times.
        """
        wanted = sum(ref.num_tokens for ref in refs)
        if all(chunk_codec(dump.identity).is_raw for dump, _, _ in self._shards):
            wanted //= num_ranks
        shards = {ref.shard_id for ref in refs}
        return wanted * _SPARSE < sum(self._manifest(shard_id).num_tokens for shard_id in shards)

    def has_room(self, prefetch_mib: int) -> bool:
        """Whether so much memory holds the shards that are needed together and one to come.

        Where it does not, shards would be read again and again; single samples are read once.
        """
        sizes = sorted(self.whole_bytes(shard_id) for shard_id in range(len(self._shards)))
        return sum(sizes[-SHARDS_TOGETHER - 1 :]) <= prefetch_mib * 2**20

    def place(self, ref: SampleRef) -> str:
        """Where a sample lies, for messages."""
        dump, shard_id, _ = self._shards[ref.shard_id]
        return f"shard {shard_id} sample {ref.index} of {dump.folder.url}"

    def whole(self, shard_id: int, pool: BufferPool | None = None) -> WholeShard:
        """A shard, with every crc checked, in memory of the pool.

        Raises IntegrityError, StoreError.
        """
        shard = self._open(shard_id)
        return WholeShard(shard.samples(), shard.read_all(pool), self._adds_final)

    def some(self, shard_id: int, refs: Sequence[SampleRef]) -> Samples:
        """Some samples of a shard, each read and checked alone; raises as `whole` does."""
        shard = self._open(shard_id)
        stored = shard.samples()
        found: Samples = {}
        for ref in refs:
            whole = stored[ref.index]
            sample = _cut(whole, shard.read_sample(whole), ref.num_tokens)
            # What was cut off is let go.
            sample = sample if ref.num_tokens == whole.num_tokens else sample.copy()
            found[ref.index] = with_final_layer(sample) if self._adds_final else sample
        return found

    def whole_bytes(self, shard_id: int) -> int:
        """Memory that a shard takes."""
        manifest = self._manifest(shard_id)
        return self._bytes(manifest.num_tokens, manifest.num_rows)

    def some_bytes(self, refs: Sequence[SampleRef]) -> int:
        """Memory that samples take at most: where each token but the first is supervised."""
        num_tokens = sum(ref.num_tokens for ref in refs)
        return self._bytes(num_tokens, num_tokens)

    def _bytes(self, num_tokens: int, num_rows: int) -> int:
        identity = self.dump.identity
        # Of a token: its states (in bfloat16, however they are stored), id and mask.
        token_bytes = len(self._layers) * 2 * identity.target.hidden_size + 5
        return num_tokens * token_bytes + num_rows * verifier_row_bytes(identity)

    def _open(self, shard_id: int) -> ShardReader:
        dump, of_dump, _ = self._shards[shard_id]
        return dump.shard(of_dump, self._stored)

    def _manifest(self, shard_id: int) -> ShardManifest:
        dump, of_dump, _ = self._shards[shard_id]
        return dump.manifests[of_dump]

    def _shard_refs(self, shard_id: int) -> list[SampleRef]:
        weight = self._shards[shard_id][2]
        refs = []
        for index, sample in enumerate(self._open(shard_id).samples()):
            length = self._length(sample)
            if _has_start(sample, length):
                num_rows = int(sample.loss_mask[1:length].sum())
                refs.append(SampleRef(shard_id, index, length, sample.prompt_id, weight, num_rows))
        return refs

    def _length(self, sample: StoredSample) -> int:
        return min(sample.num_tokens, self.context_length or sample.num_tokens)


def _has_start(sample: StoredSample, length: int) -> bool:
    # The second token has a verifier row, but nothing to be drafted from.
    spans = supervised_spans(sample.loss_mask[:length])
    return any(end > 2 for _, end in spans)


def _cut(stored: StoredSample, states: SampleStates, length: int) -> DrafterSample:
    """The first `length` tokens of a sample, and the verifier rows that predict them."""
    mask = stored.loss_mask[:length]
    return DrafterSample(
        input_ids=stored.input_ids[:length],
        loss_mask=mask,
        states=_part(states, slice(0, length), slice(0, int(mask[1:].sum()))),
        weight=float(stored.multiplicity),
    )


def _part(states: SampleStates, tokens: slice, rows: slice) -> SampleStates:
    parts = {}
    for field in fields(states):
        values = getattr(states, field.name)
        if values is not None:
            parts[field.name] = values[tokens if field.name == "aux_TLH" else rows]
    return SampleStates(**parts)
