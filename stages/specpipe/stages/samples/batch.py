"""The batch of a training step: packed samples, their starts, and the verifier row of each head.

Positions of a batch are packed: sample after sample on one token axis. A *start* i has consumed
x[0..i] and emitted x[i+1]; head k at start i takes token x[i+k], predicts x[i+k+1], and its target
distribution is the verifier's at position i+k, a *verifier row*. Nothing reaches across a sample.

Legend: T tokens, L aux layers, H hidden size, S verifier rows, N starts, K heads, C kept tokens,
V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specpipe.stages.storage.shard.buffer_pool import BufferPool
from specpipe.stages.storage.shard.states import SampleStates

Rows = npt.NDArray[np.bool_]
"""bool [K, N]: head k may use start n."""
ChooseRows = Callable[[int, Rows, npt.NDArray[np.bool_]], Rows]
"""Which of these rows of a sample, by its number in the batch, are trained on; the last argument
says of each start whether its own token x[i+1] is supervised."""


@dataclass(frozen=True, slots=True)
class DrafterSample:
    """One sample as the drafter sees it: tokens, mask, and the target's states."""

    input_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.uint8]
    states: SampleStates
    weight: float = 1.0

    def copy(self) -> "DrafterSample":
        """With arrays of its own, where these are views of a shard's."""
        columns = {name: values.copy() for name, values in self.states.columns().items()}
        states = SampleStates.of_columns(columns)
        return replace(
            self,
            input_ids=self.input_ids.copy(),
            loss_mask=self.loss_mask.copy(),
            states=states,
        )


@dataclass(frozen=True, slots=True)
class SpanOfStarts:
    """Consecutive starts of one supervised span, as packed positions.

    Queries are the starts [begin, end); their keys are the sample's positions [sample, begin)
    and, causally, their own [begin, end).
    """

    sample: int
    begin: int
    end: int

    @property
    def num_starts(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed samples as tensors; `to` moves them to a device.

    A start is used by head k only if its whole chain 1..k is valid: inside one supervised span.
    """

    input_ids_T: Tensor
    """int64"""
    positions_T: Tensor
    """int64: position inside the sample"""
    aux_TLH: Tensor
    """bfloat16"""
    logz_S: Tensor
    token_logprob_S: Tensor
    """float32: the verifier's log-probability of the next token"""
    argmax_S: Tensor
    next_token_S: Tensor
    """int64"""
    row_weights_S: Tensor
    """float32: multiplicity of the row's sample"""
    starts_N: Tensor
    """int64: packed position of each start"""
    weights_N: Tensor
    """float32: multiplicity of the start's sample"""
    emitted_N: Tensor
    """bool: x[i+1] is supervised, so a decode can really start here; metrics count only these"""
    rows_KN: Tensor
    """int64: verifier row of head k at start n, -1 where head k must not use the start"""
    spans: tuple[SpanOfStarts, ...]
    final_SH: Tensor | None = None
    """Logits mode `final`; bfloat16, before the final norm"""
    topk_ids_SC: Tensor | None = None
    """Mode `topk:C`; int32, the most likely next tokens"""
    topk_logp_SC: Tensor | None = None
    """Mode `topk:C`; bfloat16, their log-probabilities"""
    logp_SV: Tensor | None = None
    """Mode `full`; bfloat16, the log-probability of every token"""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids_T)

    @property
    def num_heads(self) -> int:
        return len(self.rows_KN)

    def with_heads(self, num_heads: int) -> "Batch":
        """The same with the first heads alone."""
        return replace(self, rows_KN=self.rows_KN[:num_heads])

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device) -> "Batch":
        """On `device`; returns before the copies are done where the batch is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """In memory that a GPU can copy from on its own."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {name: change(t) for name, t in self.tensors().items()}
        return replace(self, **changed)


@dataclass(slots=True)
class _Rows:
    """Row indices of one sample's starts, on the packed axes."""

    spans: list[SpanOfStarts]
    starts: list[npt.NDArray[np.int64]]
    emitted: list[npt.NDArray[np.bool_]]
    rows: list[npt.NDArray[np.int64]]


def supervised_spans(loss_mask: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Runs [begin, end) of supervised tokens that something precedes: token 0 is never drafted."""
    mask = loss_mask.astype(np.int8)
    mask[0] = 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [(int(b), int(e)) for b, e in edges.reshape(-1, 2)]


def _starts(loss_mask: npt.NDArray[np.uint8], token_at: int, row_at: int, num_heads: int) -> _Rows:
    """Starts of one sample that begins at packed token `token_at` and verifier row `row_at`.

    A span of tokens [b, e) has the verifier rows b-1 .. e-2, the starts b-2 .. e-3 (b-2 only
    where there is one), and is valid for head k while i + k + 1 <= e - 1.
    """
    out = _Rows([], [], [], [])
    heads_K1 = np.arange(1, num_heads + 1)[:, None]
    for begin, end in supervised_spans(loss_mask):
        starts = np.arange(max(begin - 2, 0), end - 2)
        if len(starts):
            predicted_KN = starts + heads_K1 + 1
            rows_KN = row_at + (predicted_KN - begin)
            out.spans.append(
                SpanOfStarts(token_at, token_at + int(starts[0]), token_at + int(starts[-1]) + 1)
            )
            out.starts.append(token_at + starts)
            out.emitted.append(starts + 1 >= begin)
            out.rows.append(np.where(predicted_KN < end, rows_KN, -1))
        row_at += end - begin
    return out


def _chosen(rows: _Rows, choose: Callable[[Rows, npt.NDArray[np.bool_]], Rows]) -> _Rows:
    """The starts of one sample with a row that is chosen, and of their rows these alone."""
    if not rows.spans:
        return rows
    starts_N, emitted_N = np.concatenate(rows.starts), np.concatenate(rows.emitted)
    rows_KN = np.concatenate(rows.rows, axis=1)
    chosen_KN = choose(rows_KN >= 0, emitted_N) & (rows_KN >= 0)
    kept_N = chosen_KN.any(axis=0)
    rows_KN = np.where(chosen_KN, rows_KN, -1)[:, kept_N]
    starts_N, emitted_N, sample = starts_N[kept_N], emitted_N[kept_N], rows.spans[0].sample
    cuts = np.flatnonzero(np.diff(starts_N) != 1) + 1
    runs = [run for run in np.split(starts_N, cuts) if len(run)]
    spans = [SpanOfStarts(sample, int(run[0]), int(run[-1]) + 1) for run in runs]
    return _Rows(spans, runs, np.split(emitted_N, cuts), [rows_KN])


def make_batch(
    samples: Sequence[DrafterSample],
    num_heads: int,
    pool: BufferPool | None = None,
    choose: ChooseRows | None = None,
) -> Batch:
    """Pack samples on one axis, on the CPU: copies, the large ones in memory of the pool.

    `choose` keeps some heads of some starts of each sample; default: all.
    """
    parts = _Rows([], [], [], [])
    weights, row_weights, positions, next_tokens = [], [], [], []
    token_at = row_at = 0
    for number, sample in enumerate(samples):
        num_tokens = len(sample.input_ids)
        rows = _starts(sample.loss_mask, token_at, row_at, num_heads)
        if choose is not None:
            rows = _chosen(rows, partial(choose, number))
        parts.spans += rows.spans
        parts.starts += rows.starts
        parts.emitted += rows.emitted
        parts.rows += rows.rows
        weights += [np.full(len(s), sample.weight, dtype=np.float32) for s in rows.starts]
        positions.append(np.arange(num_tokens))
        next_tokens.append(sample.input_ids[1:][sample.loss_mask[1:] == 1])
        row_weights.append(np.full(len(next_tokens[-1]), sample.weight, dtype=np.float32))
        token_at += num_tokens
        row_at += len(next_tokens[-1])
    states = [sample.states for sample in samples]
    empty_KN = np.zeros((num_heads, 0), dtype=np.int64)
    return Batch(
        input_ids_T=_long([s.input_ids for s in samples]),
        positions_T=_long(positions),
        aux_TLH=_bfloat16([s.aux_TLH for s in states], pool),
        logz_S=torch.from_numpy(np.concatenate([s.logz_S for s in states])),
        token_logprob_S=torch.from_numpy(np.concatenate([s.token_logprob_S for s in states])),
        argmax_S=_long([s.argmax_S for s in states]),
        next_token_S=_long(next_tokens),
        row_weights_S=_float(row_weights),
        starts_N=_long(parts.starts),
        weights_N=_float(weights),
        emitted_N=torch.from_numpy(np.concatenate([np.zeros(0, np.bool_), *parts.emitted])),
        rows_KN=torch.from_numpy(np.concatenate([empty_KN, *parts.rows], axis=1)),
        spans=tuple(parts.spans),
        **_verifier_side(states, pool),
    )


def _verifier_side(states: Sequence[SampleStates], pool: BufferPool | None) -> dict[str, Tensor]:
    """What samples of one logits mode keep of the verifier's distribution."""
    finals = [s.final_SH for s in states if s.final_SH is not None]
    ids = [s.topk_ids_SK for s in states if s.topk_ids_SK is not None]
    kept = [s.topk_logits_SK for s in states if s.topk_logits_SK is not None]
    everything = [s.logits_SV for s in states if s.logits_SV is not None]
    if len(finals) == len(states):
        return {"final_SH": _bfloat16(finals, pool)}
    if len(everything) == len(states):
        return {"logp_SV": _bfloat16(everything, pool)}
    assert len(ids) == len(kept) == len(states), "samples of one batch have one logits mode"
    return {
        "topk_ids_SC": torch.from_numpy(np.concatenate(ids)),
        "topk_logp_SC": _bfloat16(kept, pool),
    }


def _long(arrays: Sequence[npt.NDArray[np.integer]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *arrays]).astype(np.int64))


def _float(arrays: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *arrays]))


def _bfloat16(arrays: Sequence[npt.NDArray[np.uint16]], pool: BufferPool | None) -> Tensor:
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    joined = (pool.array if pool else np.empty)(shape, np.dtype(np.uint16))
    np.concatenate(arrays, out=joined)
    return torch.from_numpy(joined).view(torch.bfloat16)
