"""Do the plain implementation and the trainer's give one drafter? Start by start, weights alike.

At every start and head the two distributions over the draft vocabulary are compared, log q by
log q, in units of the largest logit of the row (at least 1). In float32 (one rounding: 6e-8) they
are alike where they differ by less than 3e-5. A sample where they differ by more is computed once
more in float64 (one rounding: 1e-16) by both: rounding alone, however much K steps of large weights
blow it up, then leaves next to nothing, and a difference of mathematics stays as it is.

Distributions that agree so draft the same token greedily too, unless two logits are nearer to each
other than that: a tie, which either may break as it likes.

Legend: K heads, N starts of a batch, R starts of a span, B rows of a block, D draft vocabulary,
H hidden size.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.schemas.records.validation import Agreement
from specpipe.stages.drafters.contract import Proposal
from specpipe.stages.drafters.scorer import TrainedDrafter
from specpipe.stages.samples.batch import Batch
from specpipe.stages.validate.drafted_text import TargetText

FLOAT32_LIMIT = 3e-5
"""500 roundings of float32; more is looked at in float64."""
FLOAT64_LIMIT = 1e-7
"""A billion roundings of float64."""
BLOCK_NUMBERS = 2**24


@dataclass(frozen=True, slots=True)
class _Worst:
    """The largest difference of a sample, and where it is."""

    difference: float = 0.0
    start: int = 0
    head: int = 0


class Comparison:
    """Adds up samples."""

    def __init__(self, plain: Proposal, trained: TrainedDrafter) -> None:
        self._plain, self._trained = plain, trained
        self._wide: Proposal | None = None
        self._num_samples = self._num_starts = self._num_wide = 0
        self._largest = self._largest_wide = 0.0
        self._problem: str | None = None

    @torch.no_grad()
    def add(
        self, text: TargetText, outputs: Sequence[Tensor], batch: Batch, hidden_KNH: Tensor
    ) -> None:
        """One sample: `outputs` are the plain drafter's, [K, R, H] of each drafted span, and
        `hidden_KNH` what the trainer's lm_head takes."""
        pairs = list(_pairs(text, outputs, batch, hidden_KNH))
        worst = self._worst(self._plain, pairs)
        self._num_starts += sum(len(pair.plain_RH) for pair in pairs)
        if worst.difference <= FLOAT32_LIMIT:
            self._largest = max(self._largest, worst.difference)
        elif self._problem is None:
            self._judge(text, batch)
        self._num_samples += 1

    @property
    def found(self) -> Agreement:
        return Agreement(
            num_starts=self._num_starts,
            largest_difference=self._largest,
            num_in_float64=self._num_wide,
            largest_in_float64=self._largest_wide,
            problem=self._problem,
        )

    def _judge(self, text: TargetText, batch: Batch) -> None:
        """In float64."""
        plain = self._wide = self._wide or self._plain.double()
        num_steps = batch.num_heads
        outputs = [
            plain.hidden(text.input_ids_T, text.aux_TLH, begin - 1, end - 2, num_steps)
            for begin, end in text.drafted_spans
        ]
        hidden_KNH = self._trained.hidden_in_float64(batch)
        worst = self._worst(plain, _pairs(text, outputs, batch, hidden_KNH))
        self._num_wide += 1
        self._largest_wide = max(self._largest_wide, worst.difference)
        if not worst.difference <= FLOAT64_LIMIT:
            self._problem = (
                f"the files are not the trained drafter: in sample {self._num_samples}, at token"
                f" {worst.start}, the log-probabilities of draft {worst.head} are"
                f" {worst.difference:.2g} of the largest logit apart, of which rounding explains"
                f" {FLOAT64_LIMIT:g}"
            )

    def _worst(self, plain: Proposal, pairs: "Iterable[_Pair]") -> _Worst:
        worst = _Worst()
        block = max(1, BLOCK_NUMBERS // len(plain.target_ids_D))
        for pair in pairs:
            for row in range(0, len(pair.plain_RH), block):
                apart_B = self._apart(plain, pair, slice(row, row + block))
                at = int(apart_B.argmax())
                if float(apart_B[at]) > worst.difference:
                    worst = _Worst(float(apart_B[at]), pair.start + row + at, pair.head)
        return worst

    def _apart(self, plain: Proposal, pair: "_Pair", rows: slice) -> Tensor:
        """The largest difference of log q at each of the pair's rows, over the largest logit."""
        ours_BD = plain.logits(pair.plain_RH[rows], pair.head)
        theirs_BD = self._trained.logits(pair.trained_RH[rows], pair.head)
        scale_B = theirs_BD.abs().amax(-1).clamp(min=1.0)
        apart_BD = ours_BD.log_softmax(-1).sub_(theirs_BD.log_softmax(-1)).abs_()
        # NaN of one side is the largest difference of all.
        return (apart_BD.amax(-1) / scale_B).nan_to_num(nan=torch.inf)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Outputs of both for one head at consecutive starts."""

    head: int
    start: int
    """The first, as a token of the sample."""
    plain_RH: Tensor
    """The plain drafter's norm is still to come."""
    trained_RH: Tensor


def _pairs(
    text: TargetText, outputs: Sequence[Tensor], batch: Batch, hidden_KNH: Tensor
) -> Iterator[_Pair]:
    """Each head of each drafted span, where it predicts a token inside the span."""
    for (begin, end), plain_KRH in zip(text.drafted_spans, outputs, strict=True):
        first = begin - 1
        at = int(torch.searchsorted(batch.starts_N, first))
        for k, (plain_RH, trained_NH) in enumerate(zip(plain_KRH, hidden_KNH, strict=True)):
            num_rows = end - begin - 1 - k
            if num_rows > 0:
                yield _Pair(k + 1, first, plain_RH[:num_rows], trained_NH[at : at + num_rows])
