"""Drafts of the trained drafter along held-out samples.

Legend: T tokens, K heads, R starts of a span.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from specpipe.stages.acceptance.loss.measures import MEASURES
from specpipe.stages.drafters.scorer import ScoredSample, TrainedDrafter
from specpipe.stages.samples.reader import SampleRef

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DraftedSpan:
    """A supervised span, the tokens [begin, end) of its sample.

    Start r = 0 .. R-1 (R = end - begin - 1) has emitted token begin + r and drafts those after it;
    entry [r, k-1] is head k's, about token begin + r + k, and means nothing where that lies
    outside of the span.
    """

    begin: int
    end: int
    drafts_RK: Ids
    """The drafter's most likely tokens, given that the text goes on as it does."""
    accept_RK: npt.NDArray[np.float64]
    """Probability at temperature 1 that the text's token is an accepted draft."""


@dataclass(frozen=True, slots=True)
class DraftedSample:
    input_ids_T: Ids
    spans: tuple[DraftedSpan, ...]
    weight: float


def drafted_samples(
    drafter: TrainedDrafter, context_length: int | None, refs: Sequence[SampleRef]
) -> Iterator[DraftedSample]:
    """The samples in the dump's order, each with what is drafted along it."""
    for sample in drafter.measure(context_length, refs):
        yield _drafted(drafter, sample)


def _drafted(drafter: TrainedDrafter, sample: ScoredSample) -> DraftedSample:
    batch = sample.batch
    drafts_NK = torch.stack(
        [drafter.most_likely(x_NH, k) for k, x_NH in enumerate(sample.hidden_KNH, start=1)], dim=1
    ).numpy()
    accept = MEASURES.index("accept" if drafter.samples_drafts else "greedy_text")
    accept_NK = sample.measures_MKN[accept].T.double().numpy()
    emitted_N = batch.emitted_N.numpy()
    spans, at = [], 0
    for span in batch.spans:
        end = at + span.num_starts
        # The start before the first token has emitted one of the prompt: no decode is there.
        skipped = int(not emitted_N[at])
        rows = slice(at + skipped, end)
        if rows.start < rows.stop:
            begin = span.begin + skipped + 1
            spans.append(DraftedSpan(begin, span.end + 2, drafts_NK[rows], accept_NK[rows]))
        at = end
    weight = float(batch.weights_N[0]) if len(batch.weights_N) else 1.0
    return DraftedSample(batch.input_ids_T.numpy(), tuple(spans), weight)
