"""Sums of the measures over batches, and the metrics that follow from them.

A head is measured conditionally on the heads before it (arXiv 2602.23881, section 5): with the
survival S_k = w_1 ... w_k of a start's first k drafts, head k's acceptance rate is
sum S_{k-1} a_k / sum S_{k-1} over its valid starts. The rates then multiply up to E[S_k], but for
the few starts at the end of a span that only the first heads have.
Only starts that a decode can really have (x[i+1] supervised) count.

Legend: K heads, N starts, M measures.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specpipe.schemas.dump import TextOrigin
from specpipe.schemas.metrics import EvalMetrics, SamplingMetrics, sampling_metrics
from specpipe.schemas.train_config import LossName
from specpipe.stages.drafter.batch import Batch
from specpipe.stages.drafter.loss import MEASURES
from specpipe.stages.drafter.replay import ReplaySpan, replay

Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class MeasureSums:
    """Running sums over batches, in float64."""

    num_heads: int
    keep_spans: bool = False
    """Keep what the replay needs; off during training steps."""
    num_samples: int = 0
    measures_MK: Array = field(init=False)
    counts_K: Array = field(init=False)
    survival_2K: Array = field(init=False)
    """Denominators of the conditional rates: temperature 1, greedy."""
    accepted_2K: Array = field(init=False)
    token_logprob: float = 0.0
    num_tokens: float = 0.0
    sampled_spans: list[ReplaySpan] = field(default_factory=list)
    greedy_spans: list[ReplaySpan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.measures_MK = np.zeros((len(MEASURES), self.num_heads))
        self.counts_K = np.zeros(self.num_heads)
        self.survival_2K = np.zeros((2, self.num_heads))
        self.accepted_2K = np.zeros((2, self.num_heads))

    def add(self, batch: Batch, measures_MKN: Tensor) -> None:
        """Add the measures [M, K, N] of one batch."""
        by_name = dict(zip(MEASURES, measures_MKN.double(), strict=True))
        valid_KN = ((batch.rows_KN >= 0) & batch.emitted_N) * batch.weights_N.double()
        self.measures_MK += (measures_MKN.double() * valid_KN).sum(-1).cpu().numpy()
        self.counts_K += valid_KN.sum(-1).cpu().numpy()
        variants = (
            (by_name["accept"], by_name["alpha"]),
            # Along the text greedy drafting goes on only while the text is what both would choose.
            (by_name["greedy_text"] * by_name["greedy_match"], by_name["greedy_match"]),
        )
        for i, (survives_KN, accepts_KN) in enumerate(variants):
            before_KN = torch.ones_like(survives_KN)
            before_KN[1:] = torch.cumprod(survives_KN, dim=0)[:-1]
            self.survival_2K[i] += (valid_KN * before_KN).sum(-1).cpu().numpy()
            self.accepted_2K[i] += (valid_KN * before_KN * accepts_KN).sum(-1).cpu().numpy()
        self.token_logprob += float((batch.token_logprob_S * batch.row_weights_S).double().sum())
        self.num_tokens += float(batch.row_weights_S.double().sum())
        if self.keep_spans:
            self._keep_spans(batch, by_name["accept"], by_name["greedy_text"])

    def _keep_spans(self, batch: Batch, sampled_KN: Tensor, greedy_KN: Tensor) -> None:
        emitted_N, weights_N = batch.emitted_N.cpu().numpy(), batch.weights_N.cpu().numpy()
        sampled_NK, greedy_NK = sampled_KN.T.cpu().numpy(), greedy_KN.T.cpu().numpy()
        at, samples = 0, dict[int, int]()
        for span in batch.spans:
            number = samples.setdefault(span.sample, self.num_samples + len(samples))
            end = at + span.num_starts
            begin = at + int(not emitted_N[at])  # the start before the first real one
            for spans, accept_NK in (
                (self.sampled_spans, sampled_NK),
                (self.greedy_spans, greedy_NK),
            ):
                spans.append(
                    ReplaySpan(accept_NK[begin:end], end - begin + 1, number, float(weights_N[at]))
                )
            at = end
        self.num_samples += len(samples)

    def mean(self, measure: str) -> list[float]:
        """Mean of a measure per head, over its valid starts."""
        return _divide(self.measures_MK[MEASURES.index(measure)], self.counts_K)

    @property
    def cross_entropy(self) -> list[float]:
        """Mean -log q(token) per head over the rows whose token is in the draft vocabulary."""
        inside_K = self.measures_MK[MEASURES.index("in_vocabulary")]
        return _divide(self.measures_MK[MEASURES.index("ce")], inside_K)

    @property
    def target_model_loss(self) -> float:
        return -self.token_logprob / max(self.num_tokens, 1.0)

    def sampling(self, *, greedy: bool) -> SamplingMetrics:
        return sampling_metrics(
            _divide(self.accepted_2K[int(greedy)], self.survival_2K[int(greedy)])
        )

    def draft_loss(self, loss: LossName, eta: float, head_decay: float) -> float:
        """The training loss over everything that was added."""
        alpha, kl = np.array(self.mean("alpha")), np.array(self.mean("kl"))
        lambda_K = np.exp(-eta * alpha)
        per_head = {
            "kl": kl,
            "lk_alpha": np.array(self.mean("lk")),
            "lk_hybrid": lambda_K * kl + (1 - lambda_K) * (1 - alpha),
            "ce": np.array(self.cross_entropy),
            "tv": 1 - alpha,
        }[loss]
        return float(per_head @ head_decay ** np.arange(self.num_heads))

    def eval_metrics(
        self, loss: LossName, eta: float, head_decay: float, text: TextOrigin
    ) -> EvalMetrics:
        """All metrics; `text` decides which replay is exact."""
        return EvalMetrics(
            num_samples=self.num_samples,
            num_positions=round(self.counts_K[0]),
            draft_loss=self.draft_loss(loss, eta, head_decay),
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
