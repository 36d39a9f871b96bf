"""Sums of the measures over batches, and the metrics that follow from them.

A head is measured conditionally on the heads before it (arXiv 2602.23881, section 5): with the
survival S_k = w_1 ... w_k of a start's first k drafts, head k's acceptance rate is
sum S_{k-1} a_k / sum S_{k-1} over its valid starts. The rates then multiply up to E[S_k], but for
the few starts at the end of a span that only the first heads have.
Only starts that a decode can really have (x[i+1] supervised) count.

Legend: K heads, N starts, M measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specpipe.schemas.records.dump import TextOrigin
from specpipe.schemas.records.metrics import EvalMetrics, SamplingMetrics, sampling_metrics
from specpipe.schemas.settings.train import LossName
from specpipe.stages.acceptance.loss.measures import MEASURES
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.acceptance.replay import ReplaySpan, replay
from specpipe.stages.samples.batch import Batch

Array = npt.NDArray[np.float64]


_ROWS = {"measures": len(MEASURES), "hybrid": 1, "counts": 1, "survival": 2, "accepted": 2}
"""Rows of K in the sums; survival and accepted are at temperature 1 and greedy; hybrid is
lk_hybrid with each start's own lambda."""


@dataclass(slots=True)
class MeasureSums:
    """Running sums over batches, in float64, on the device of the measures until they are read."""

    num_heads: int
    keep_spans: bool = False
    """Keep what the replay needs; off during training steps."""
    eta: float = 3.0
    """Of lk_hybrid's lambda per start."""
    samples_drafts: bool = True
    """At temperature 1; else drafts are greedy there too."""
    num_samples: int = 0
    sums: Tensor = field(init=False)
    """Everything that is summed, [rows of K, then -log p of the text and its tokens], so that sums
    of several processes add up."""
    sampled_spans: list[ReplaySpan] = field(default_factory=list)
    greedy_spans: list[ReplaySpan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(sum(_ROWS.values()) * self.num_heads + 2, dtype=torch.float64)

    def add(self, batch: Batch, measures_MKN: Tensor, fewer: Sequence[Tensor] = ()) -> None:
        """Add the measures [M, K, N] of one batch; does not wait for the device.

        `fewer` are those of passes with 1 .. K-1 heads, where what a head drafts depends on that;
        they count in the replay alone.
        """
        measures_MKN = measures_MKN.double()
        by_name = dict(zip(MEASURES, measures_MKN, strict=True))
        valid_KN = ((batch.rows_KN >= 0) & batch.emitted_N) * batch.weights_N.double()
        survival, accepted = [], []
        accept_KN = by_name[self._accept_at_1]
        variants = (
            # A greedy draft is accepted as often as the target's text has its token.
            (accept_KN, by_name["alpha"] if self.samples_drafts else accept_KN),
            # Along the text greedy drafting goes on only while the text is what both would choose.
            (by_name["greedy_text"] * by_name["greedy_match"], by_name["greedy_match"]),
        )
        for survives_KN, accepts_KN in variants:
            before_KN = torch.ones_like(survives_KN)
            before_KN[1:] = torch.cumprod(survives_KN, dim=0)[:-1]
            survival.append((valid_KN * before_KN).sum(-1))
            accepted.append((valid_KN * before_KN * accepts_KN).sum(-1))
        weights_S = batch.row_weights_S.double()
        text = torch.stack([-(batch.token_logprob_S * weights_S).sum(), weights_S.sum()])
        measured_MK = (measures_MKN * valid_KN).sum(-1)
        lambda_KN = torch.exp(-self.eta * by_name["alpha"])
        hybrid_KN = lambda_KN * by_name["kl"] + (1 - lambda_KN) * (1 - by_name["alpha"])
        hybrid_K = (hybrid_KN * valid_KN).sum(-1)
        counts_K = valid_KN.sum(-1)
        parts = [measured_MK.flatten(), hybrid_K, counts_K, *survival, *accepted, text]
        self.sums = self.sums.to(measures_MKN.device) + torch.cat(parts)
        if self.keep_spans:
            self._keep_spans(batch, [*fewer, measures_MKN])

    @property
    def _accept_at_1(self) -> str:
        """The measure of what is accepted at temperature 1."""
        return "accept" if self.samples_drafts else "greedy_text"

    def _rows(self, name: str) -> Array:
        """Rows of the sums, [rows, K]."""
        names = list(_ROWS)
        begin = sum(_ROWS[before] for before in names[: names.index(name)])
        table: Array = self.sums[:-2].view(-1, self.num_heads).cpu().numpy()
        return table[begin : begin + _ROWS[name]]

    @property
    def counts_K(self) -> Array:
        """Valid starts of each head, weighted by multiplicity."""
        counts_K: Array = self._rows("counts")[0]
        return counts_K

    def _keep_spans(self, batch: Batch, passes: Sequence[Tensor]) -> None:
        """`passes` are measures [M, k, N] of passes with k heads, the last with all."""
        emitted_N, weights_N = batch.emitted_N.cpu().numpy(), batch.weights_N.cpu().numpy()
        sampled, greedy = (
            [measures[MEASURES.index(name)].double().T.cpu().numpy() for measures in passes]
            for name in (self._accept_at_1, "greedy_text")
        )
        at, samples = 0, dict[int, int]()
        for span in batch.spans:
            number = samples.setdefault(span.sample, self.num_samples + len(samples))
            end = at + span.num_starts
            begin = at + int(not emitted_N[at])  # the start before the first real one
            length, weight = end - begin + 1, float(weights_N[at])
            for spans, accepts in ((self.sampled_spans, sampled), (self.greedy_spans, greedy)):
                *fewer, accept_RK = (accept_Nk[begin:end] for accept_Nk in accepts)
                spans.append(ReplaySpan(accept_RK, length, number, weight, tuple(fewer)))
            at = end
        self.num_samples += len(samples)

    def mean(self, measure: str) -> list[float]:
        """Mean of a measure per head, over its valid starts."""
        return _divide(self._measure(measure), self.counts_K)

    def _measure(self, measure: str) -> Array:
        row_K: Array = self._rows("measures")[MEASURES.index(measure)]
        return row_K

    @property
    def cross_entropy(self) -> list[float]:
        """Mean -log q(token) per head over the rows whose token is in the draft vocabulary."""
        return _divide(self._measure("ce"), self._measure("in_vocabulary"))

    @property
    def target_model_loss(self) -> float:
        loss, num_tokens = self.sums[-2:].tolist()
        return float(loss / max(num_tokens, 1.0))

    def sampling(self, *, greedy: bool) -> SamplingMetrics:
        return sampling_metrics(
            _divide(self._rows("accepted")[int(greedy)], self._rows("survival")[int(greedy)])
        )

    @property
    def survival(self) -> list[float]:
        """Share of each head's valid starts that come as far, at temperature 1: E[S_(k-1)]."""
        return _divide(self._rows("survival")[0], self.counts_K)

    def draft_loss(self, settings: LossSettings) -> float:
        """The training loss over everything that was added.

        lk_hybrid's lambda per head, where the settings have one, is that of what was added.
        """
        alpha_K, kl_K = np.array(self.mean("alpha")), np.array(self.mean("kl"))
        lambda_K = np.exp(-settings.eta * alpha_K)
        hybrid_K = lambda_K * kl_K + (1 - lambda_K) * (1 - alpha_K)
        if settings.lambda_K is None:
            hybrid_K = np.array(_divide(self._rows("hybrid")[0], self.counts_K))
        per_head: dict[LossName, Array] = {
            "kl": kl_K,
            "lk_alpha": np.array(self.mean("lk")),
            "lk_hybrid": hybrid_K,
            "ce": np.array(self.cross_entropy),
            "tv": 1 - alpha_K,
        }
        loss_K = sum(weight * per_head[name] for name, weight in settings.losses.items())
        return float(settings.head_weights_K.double().cpu().numpy() @ loss_K)

    def eval_metrics(self, settings: LossSettings, text: TextOrigin) -> EvalMetrics:
        """All metrics; `text` decides which replay is exact."""
        return EvalMetrics(
            num_samples=self.num_samples,
            num_positions=round(self.counts_K[0]),
            draft_loss=self.draft_loss(settings),
            target_model_loss=self.target_model_loss,
            lk=self.mean("lk"),
            kl=self.mean("kl"),
            cross_entropy=self.cross_entropy,
            out_of_vocabulary=[1 - share for share in self.mean("in_vocabulary")],
            alpha=self.mean("alpha"),
            attainable_mass=self.mean("mass")[0],
            temperature_1=self.sampling(greedy=False),
            greedy=self.sampling(greedy=True),
            replay_temperature_1=replay(self.sampled_spans, self.num_heads, exact=text.is_sampled),
            replay_greedy=replay(self.greedy_spans, self.num_heads, exact=text.is_greedy),
            replay_greedy_draft=replay(self.greedy_spans, self.num_heads, exact=text.is_sampled),
        )


def _divide(sums_K: Array, counts_K: Array) -> list[float]:
    values: list[float] = (sums_K / np.where(counts_K > 0, counts_K, 1.0)).tolist()
    return values
