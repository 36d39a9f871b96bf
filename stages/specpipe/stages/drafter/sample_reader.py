"""Samples of a dump as the drafter sees them: listed, and read checked, shard by shard."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property

from specpipe.schemas.errors import InputError
from specpipe.stages.drafter.batch import DrafterSample, supervised_spans
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.samples import StoredSample
from specpipe.stages.storage.states import SampleStates

_PARALLEL_READS = 8
_SPARSE = 4
"""Samples are read one by one where they are less than this part of their shards."""


@dataclass(frozen=True, order=True, slots=True)
class SampleRef:
    """A sample of a dump, by place, with what ordering and splitting need."""

    shard_id: int
    index: int
    num_tokens: int
    """After cutting at the context length."""
    prompt_id: str


Samples = dict[int, DrafterSample]
"""Samples of one shard, by index."""


@dataclass(frozen=True, slots=True)
class WholeShard:
    """A shard in memory; its samples share its arrays."""

    stored: list[StoredSample]
    states: SampleStates

    def sample(self, ref: SampleRef) -> DrafterSample:
        """A copy, so that the shard may go while the sample stays."""
        stored = self.stored[ref.index]
        tokens = slice(stored.offset, stored.offset + stored.num_tokens)
        rows = slice(stored.row_offset, stored.row_offset + stored.num_rows)
        return _cut(stored, _part(self.states, tokens, rows), ref.num_tokens)


class SampleReader:
    """Samples of one dump, cut at a context length. Any number of threads may read."""

    def __init__(self, dump: Dump, context_length: int | None) -> None:
        self.dump = dump
        self.context_length = context_length

    def refs(self) -> list[SampleRef]:
        """Every sample that has a start to learn from, in the order of the dump.

        Raises InputError where there is none.
        """
        return list(self._refs)

    @cached_property
    def _refs(self) -> list[SampleRef]:
        # Splitting and evaluating both ask, and every samples.parquet is read and checked for it.
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            try:
                found = list(pool.map(self._shard_refs, sorted(self.dump.manifests)))
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

    def is_sparse(self, refs: Sequence[SampleRef]) -> bool:
        """Whether these are so few of their shards' samples that whole shards are a waste."""
        wanted = sum(ref.num_tokens for ref in refs)
        shards = {ref.shard_id for ref in refs}
        return wanted * _SPARSE < sum(self.dump.manifests[i].num_tokens for i in shards)

    def whole(self, shard_id: int) -> WholeShard:
        """A shard, with every crc checked. Raises IntegrityError, StoreError."""
        shard = self.dump.shard(shard_id)
        return WholeShard(shard.samples(), shard.read_all())

    def some(self, shard_id: int, refs: Sequence[SampleRef]) -> Samples:
        """Some samples of a shard, each read and checked alone; raises as `whole` does."""
        shard = self.dump.shard(shard_id)
        stored = shard.samples()
        return {
            ref.index: _cut(stored[ref.index], shard.read_sample(stored[ref.index]), ref.num_tokens)
            for ref in refs
        }

    def whole_bytes(self, shard_id: int) -> int:
        """Memory that a shard takes."""
        manifest = self.dump.manifests[shard_id]
        return self._bytes(manifest.num_tokens, manifest.num_rows)

    def some_bytes(self, refs: Sequence[SampleRef]) -> int:
        """Memory that samples take at most: where each token but the first is supervised."""
        num_tokens = sum(ref.num_tokens for ref in refs)
        return self._bytes(num_tokens, num_tokens)

    def _bytes(self, num_tokens: int, num_rows: int) -> int:
        identity = self.dump.identity
        state_bytes = 2 * identity.target.hidden_size
        # Of a token: its states, id and mask; of a row: its state, logz, token_logprob and argmax.
        return num_tokens * (len(identity.layers) * state_bytes + 5) + num_rows * (state_bytes + 12)

    def _shard_refs(self, shard_id: int) -> list[SampleRef]:
        return [
            SampleRef(shard_id, index, self._length(sample), sample.prompt_id)
            for index, sample in enumerate(self.dump.shard(shard_id).samples())
            if _has_start(sample, self._length(sample))
        ]

    def _length(self, sample: StoredSample) -> int:
        return min(sample.num_tokens, self.context_length or sample.num_tokens)


def _has_start(sample: StoredSample, length: int) -> bool:
    # The second token has a verifier row, but nothing to be drafted from.
    spans = supervised_spans(sample.loss_mask[:length])
    return any(end > 2 for _, end in spans)


def _cut(stored: StoredSample, states: SampleStates, length: int) -> DrafterSample:
    """The first `length` tokens of a sample, and the verifier rows that predict them, as copies."""
    mask = stored.loss_mask[:length]
    return DrafterSample(
        input_ids=stored.input_ids[:length].copy(),
        loss_mask=mask.copy(),
        states=_part(states, slice(0, length), slice(0, int(mask[1:].sum())), copy=True),
        weight=float(stored.multiplicity),
    )


def _part(states: SampleStates, tokens: slice, rows: slice, *, copy: bool = False) -> SampleStates:
    parts = {}
    for field in fields(states):
        values = getattr(states, field.name)
        if values is not None:
            part = values[tokens if field.name == "aux_TLH" else rows]
            parts[field.name] = part.copy() if copy else part
    return SampleStates(**parts)
