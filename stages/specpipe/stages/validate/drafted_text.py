"""Acceptance of every token of a text, drafted by the exported drafter.

Legend: T tokens, L aux layers, H hidden size, S verifier rows, R starts of a span, K steps,
D draft vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specpipe.stages.acceptance.replay import ReplaySpan
from specpipe.stages.drafters.contract import Proposal

NOISE_STEPS = 2.0
"""Standard deviation of an engine's difference of two logits of a drafter, in steps of bfloat16 at
the size of the row's largest; 0.45 was seen."""
OTHERWISE = 0.01
"""Share of greedy drafts that may be others for no reason that is known here."""


@dataclass(frozen=True, slots=True)
class TargetText:
    """A sample with the target's states.

    `spans` are the supervised runs [begin, end); `aux_TLH` is bfloat16; `token_logprob_T` [T] is
    the target's log-probability of token x[j], read only inside the spans.
    """

    input_ids_T: Tensor
    spans: Sequence[tuple[int, int]]
    aux_TLH: Tensor
    token_logprob_T: Tensor
    weight: float = 1.0

    @property
    def drafted_spans(self) -> list[tuple[int, int]]:
        """Those with a draft: the target emits the first token of a span, and the only one."""
        return [(begin, end) for begin, end in self.spans if end - begin >= 2]


@dataclass(slots=True)
class TextSpans:
    """The replay's spans of every text, at temperature 1 and with greedy drafting."""

    samples_drafts: bool = True
    """At temperature 1; else drafts are greedy there too."""
    sampled: list[ReplaySpan] = field(default_factory=list)
    greedy: list[ReplaySpan] = field(default_factory=list)
    greedy_chance: list[ReplaySpan] = field(default_factory=list)
    """Greedy drafting in an engine, whose arithmetic in bfloat16 may break near-ties otherwise."""
    num_texts: int = 0

    def add(
        self, drafter: Proposal, text: TargetText, num_steps: int, *, each_number: bool = False
    ) -> list[Tensor]:
        """Draft along every span of the text with `num_steps` draft tokens; with `each_number` also
        with 1, 2, ... of them, where these are other drafts.

        Returns the outputs [K, R, H] of each span that has a start.
        """
        outputs = []
        numbers = range(1 if each_number else num_steps, num_steps + 1)
        for begin, end in text.drafted_spans:
            passes = []
            for number in numbers:
                hidden_KRH = drafter.hidden(
                    text.input_ids_T, text.aux_TLH, begin - 1, end - 2, number
                )
                accept = _accept(drafter, text, begin, end, hidden_KRH)
                passes.append(accept if self.samples_drafts else (accept[1], *accept[1:]))
            every = (self.sampled, self.greedy, self.greedy_chance)
            for spans, of_passes in zip(every, zip(*passes, strict=True), strict=True):
                *fewer, accept_RK = (accept.numpy() for accept in of_passes)
                spans.append(
                    ReplaySpan(accept_RK, end - begin, self.num_texts, text.weight, tuple(fewer))
                )
            outputs.append(hidden_KRH)
        self.num_texts += 1
        return outputs


def text_spans(drafter: Proposal, texts: Iterable[TargetText], num_steps: int) -> TextSpans:
    """Every span of every text, drafted with `num_steps` draft tokens."""
    out = TextSpans()
    for text in texts:
        out.add(drafter, text, num_steps)
    return out


def _accept(
    drafter: Proposal, text: TargetText, begin: int, end: int, hidden_KRH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """w [R, K] at temperature 1, of greedy drafts, and of an engine's greedy drafts; 0 where the
    token is outside the span.

    The first start stands before the span's first token; start r drafts tokens r+1, r+2, ...
    """
    num_steps, num_starts, _ = hidden_KRH.shape
    sampled_RK, greedy_RK, chance_RK = torch.zeros(3, num_starts, num_steps)
    draft_ids_V = torch.full((drafter.vocab_size,), -1)
    draft_ids_V[drafter.target_ids_D] = torch.arange(len(drafter.target_ids_D))
    for k, hidden_RH in enumerate(hidden_KRH, start=1):
        drafted = slice(begin + k, end)  # tokens that step k predicts inside the span
        tokens = text.input_ids_T[drafted].long()
        rows = slice(0, len(tokens))
        logits_RD = drafter.logits(hidden_RH[rows], k)
        step_R = bf16_steps(logits_RD.abs().amax(-1))
        logq_RD = logits_RD.log_softmax(-1)
        inside_R = draft_ids_V[tokens] >= 0
        id_R1 = draft_ids_V[tokens].clamp(min=0)[:, None]
        logq_R = logq_RD.gather(1, id_R1)[:, 0]
        ratio_R = (logq_R - text.token_logprob_T[drafted]).exp().clamp(max=1.0)
        sampled_RK[rows, k - 1] = torch.where(inside_R, ratio_R, 0.0)
        greedy_RK[rows, k - 1] = ((logq_RD.argmax(-1) == id_R1[:, 0]) & inside_R).float()
        lead_R = logq_R - logq_RD.scatter_(1, id_R1, -torch.inf).amax(-1)
        likely_R = torch.special.ndtr(lead_R / (NOISE_STEPS * step_R))
        chance_R = torch.where(inside_R, likely_R, 0.0)
        chance_RK[rows, k - 1] = OTHERWISE / 2 + (1 - OTHERWISE) * chance_R
    return sampled_RK, greedy_RK, chance_RK


def bf16_steps(size: Tensor) -> Tensor:
    """Distance of neighbouring bfloat16 numbers (8 significant bits) at these sizes."""
    return torch.exp2(torch.floor(torch.log2(size.clamp(min=1e-30))) - 7)
