"""The samples that a training run evaluated on, read from its dump.

The rule is the train stage's (its `reader.py`; a test holds the two equal): every sample with a
start to learn from, of those the held-out prompts (all of them in an `eval_dump`), in the order
of their prompts' hashes, as many as fit `eval_tokens`.

Legend: T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError as PydanticError

from specpipe.schemas.checkpoint import CONFIG_FILE
from specpipe.schemas.config import TrainConfig
from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.sample import is_held_out
from specpipe.stages.drafter.batch import DrafterSample, supervised_spans
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.samples import StoredSample
from specpipe.stages.storage.states import SampleStates


@dataclass(frozen=True, slots=True)
class Place:
    """A sample by shard and index, cut at `num_tokens`."""

    shard_id: int
    index: int
    num_tokens: int
    prompt_id: str


def run_settings(checkpoint: Path) -> TrainConfig | None:
    """Settings of the run that `checkpoint` lies in; None for a checkpoint outside of a run."""
    path = checkpoint.parent.parent / CONFIG_FILE
    if not path.exists():
        return None
    try:
        return TrainConfig.model_validate_json(path.read_bytes())
    except PydanticError as error:
        raise IntegrityError(f"{path} is not the configuration of a run: {error}") from None


def evaluated(dump: Dump, run: TrainConfig | None) -> list[Place]:
    """What the run evaluated on in this dump, by prompt hash; without a run, every sample."""
    places = [
        Place(shard_id, index, length, sample.prompt_id)
        for shard_id in sorted(dump.manifests)
        for index, sample in enumerate(dump.shard(shard_id).samples())
        if _has_start(sample, length := _length(sample, run))
    ]
    if run is not None and run.eval_dump is None:
        places = [place for place in places if is_held_out(place.prompt_id, run.held_out_fraction)]
    places.sort(key=lambda place: (place.prompt_id, place.shard_id, place.index))
    return places if run is None else _first_tokens(places, run.eval_tokens)


def _first_tokens(places: list[Place], most_tokens: int) -> list[Place]:
    """The first samples that hold `most_tokens` together (at least one)."""
    chosen: list[Place] = []
    total = 0
    for place in places:
        if chosen and total + place.num_tokens > most_tokens:
            break
        chosen.append(place)
        total += place.num_tokens
    return chosen


def read(dump: Dump, places: list[Place]) -> Iterator[DrafterSample]:
    """The samples, shard by shard, so that one shard is in memory at a time."""
    for shard_id in sorted({place.shard_id for place in places}):
        shard = dump.shard(shard_id)
        samples, states = shard.samples(), shard.read_all()
        for place in places:
            if place.shard_id == shard_id:
                yield _sample(samples[place.index], states, place.num_tokens)


def _sample(stored: StoredSample, states: SampleStates, num_tokens: int) -> DrafterSample:
    mask = stored.loss_mask[:num_tokens]
    tokens = slice(stored.offset, stored.offset + num_tokens)
    rows = slice(stored.row_offset, stored.row_offset + int(mask[1:].sum()))
    return DrafterSample(
        input_ids=stored.input_ids[:num_tokens],
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


def _length(sample: StoredSample, run: TrainConfig | None) -> int:
    limit = run.context_length if run is not None else None
    return min(sample.num_tokens, limit or sample.num_tokens)


def _has_start(sample: StoredSample, length: int) -> bool:
    spans = supervised_spans(sample.loss_mask[:length])
    return any(end - max(begin - 2, 0) > 2 for begin, end in spans)
