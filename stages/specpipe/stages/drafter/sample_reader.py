"""Reads samples of a dump as the drafter sees them: whole shards, checked, a few kept open."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from specpipe.schemas.errors import InputError
from specpipe.stages.drafter.batch import Batch, DrafterSample, make_batch, supervised_spans
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.samples import StoredSample
from specpipe.stages.storage.states import SampleStates

OPEN_SHARDS = 2


@dataclass(frozen=True, order=True, slots=True)
class SampleRef:
    """A sample of a dump, by place, with what ordering and splitting need."""

    shard_id: int
    index: int
    num_tokens: int
    """After cutting at the context length."""
    prompt_id: str


class SampleReader:
    """Samples of one dump, cut at a context length."""

    def __init__(self, dump: Dump, context_length: int | None) -> None:
        self.dump = dump
        self.context_length = context_length
        self._open: dict[int, tuple[list[StoredSample], SampleStates]] = {}

    def refs(self) -> list[SampleRef]:
        """Every sample that has a start to learn from, in the order of the dump.

        Raises InputError where there is none.
        """
        return list(self._refs)

    @cached_property
    def _refs(self) -> list[SampleRef]:
        # Splitting and evaluating both ask, and every samples.parquet is read and checked for it.
        refs = [
            SampleRef(shard_id, index, self._length(sample), sample.prompt_id)
            for shard_id in sorted(self.dump.manifests)
            for index, sample in enumerate(self.dump.shard(shard_id).samples())
            if _has_start(sample, self._length(sample))
        ]
        if not refs:
            raise InputError(
                f"{self.dump.folder.url}: no sample has a supervised token to draft within the"
                " context length; there is nothing to train on"
            )
        return refs

    def batch(self, refs: Sequence[SampleRef], num_heads: int) -> Batch:
        return make_batch([self.sample(ref) for ref in refs], num_heads)

    def samples(self, refs: Sequence[SampleRef]) -> Iterator[DrafterSample]:
        """The samples in the order of the dump, so that each shard is read once."""
        return map(self.sample, sorted(refs))

    def sample(self, ref: SampleRef) -> DrafterSample:
        samples, states = self._shard(ref.shard_id)
        stored = samples[ref.index]
        mask = stored.loss_mask[: ref.num_tokens]
        num_rows = int(mask[1:].sum())
        tokens = slice(stored.offset, stored.offset + ref.num_tokens)
        rows = slice(stored.row_offset, stored.row_offset + num_rows)
        return DrafterSample(
            input_ids=stored.input_ids[: ref.num_tokens],
            loss_mask=mask,
            states=SampleStates(
                aux_TLH=states.aux_TLH[tokens],
                final_SH=states.final_SH[rows],
                logz_S=states.logz_S[rows],
                token_logprob_S=states.token_logprob_S[rows],
                argmax_S=states.argmax_S[rows],
            ),
            weight=float(stored.multiplicity),
        )

    def _shard(self, shard_id: int) -> tuple[list[StoredSample], SampleStates]:
        if shard_id not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                del self._open[next(iter(self._open))]
            shard = self.dump.shard(shard_id)
            self._open[shard_id] = (shard.samples(), shard.read_all())
        return self._open[shard_id]

    def _length(self, sample: StoredSample) -> int:
        return min(sample.num_tokens, self.context_length or sample.num_tokens)


def _has_start(sample: StoredSample, length: int) -> bool:
    # The second token has a verifier row, but nothing to be drafted from.
    spans = supervised_spans(sample.loss_mask[:length])
    return any(end > 2 for _, end in spans)
