"""DSpark in training.

The token before a draft is the text's: a draft counts only where all before it are the text's too.
logits = W h + W2 W1[token before] = [W, W2] [h ; W1[token before]], so that what a head takes is
the second factor, and the loss is every drafter's.

Legend: K heads, N starts, H hidden size, r rank, X = H + r, D draft vocabulary, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from specpipe.schemas.drafters.dspark import DSparkShape
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.measures import MEASURES
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.parts.block.model import BlockDrafter
from specpipe.stages.samples.batch import Batch

CONFIDENCE_DECAY = 4.0
"""Head k's confidence weighs exp(-(k-1) / this), as published."""


class MarkovHead(nn.Module):
    """W1 and W2 of the bias."""

    def __init__(self, shape: DSparkShape) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(shape.vocab_size, shape.markov_rank)
        self.markov_w2 = nn.Linear(shape.markov_rank, shape.draft_vocab_size, bias=False)


class ConfidenceHead(nn.Module):
    """The logit of a draft's acceptance, from [h ; W1[token before]]."""

    def __init__(self, shape: DSparkShape) -> None:
        super().__init__()
        self.proj = nn.Linear(shape.hidden_size + shape.markov_rank, 1)

    def forward(self, outputs_KNX: Tensor) -> Tensor:
        """[K, N]"""
        out: Tensor = self.proj(outputs_KNX).squeeze(-1)
        return out


class DSpark(BlockDrafter):
    """Slot k-1 of a block, of as many slots as drafts, drafts the token k beyond the last one."""

    shape: DSparkShape

    def __init__(
        self, shape: DSparkShape, embed_tokens_VH: Tensor, head_DH: Tensor, runtime: Runtime
    ) -> None:
        super().__init__(shape, embed_tokens_VH, head_DH, runtime)
        self.markov_head = MarkovHead(shape)
        if shape.confidence:
            self.confidence_head = ConfidenceHead(shape)

    def forward(self, batch: Batch) -> Tensor:
        """[h ; W1[token before]], [K, N, X]"""
        slots_NKH = self.slots(batch, batch.num_heads)
        places_NK = batch.starts_N.unsqueeze(1) + 1
        places_NK = places_NK + torch.arange(batch.num_heads, device=places_NK.device)
        # Beyond the text no head is used.
        before_NK = batch.input_ids_T[places_NK.clamp(max=batch.num_tokens - 1)]
        outputs_NKX = torch.cat([slots_NKH, self.markov_head.markov_w1(before_NK)], dim=-1)
        return outputs_NKX.transpose(0, 1).contiguous()

    def heads(self) -> Heads:
        return Heads.shared(self.head, self.markov_head.markov_w2.weight)

    def extra_loss(
        self, batch: Batch, outputs_KNX: Tensor, measures_MKN: Tensor, of: Denominators
    ) -> Tensor | None:
        """Cross-entropy of the confidence with alpha, the probability that a draft is accepted."""
        if not self.shape.confidence:
            return None
        logits_KN = self.confidence_head(outputs_KNX)
        alpha_KN = measures_MKN[MEASURES.index("alpha")].to(logits_KN.dtype)
        losses_KN = binary_cross_entropy_with_logits(
            logits_KN, alpha_KN.clamp(0, 1), reduction="none"
        )
        weights_KN = (batch.rows_KN >= 0) * batch.weights_N
        steps_K = torch.arange(len(losses_KN), device=losses_KN.device)
        decay_K = torch.exp(-steps_K / CONFIDENCE_DECAY)
        means_K = of.mean((losses_KN * weights_KN).sum(1))
        return (means_K * decay_K / decay_K.sum()).sum().to(losses_KN.dtype)

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """The two heads are tables and projections to scores, as a lm_head is."""
        is_head = name.startswith(("markov_head", "confidence_head"))
        return super().is_matrix(name, parameter) and not is_head


@torch.no_grad()
def initialise_heads(model: DSpark) -> None:
    """The drafter begins as one without a bias, and with an even confidence."""
    rank = model.shape.markov_rank
    model.markov_head.markov_w1.weight.normal_(0, rank**-0.5)
    model.markov_head.markov_w2.weight.zero_()
    if model.shape.confidence:
        model.confidence_head.proj.weight.zero_()
        model.confidence_head.proj.bias.zero_()
