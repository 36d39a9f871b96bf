"""The verifier's distribution on the draft vocabulary, from what a dump keeps of it.

Legend: S verifier rows, R rows of a chunk, H hidden size, V vocabulary, D draft vocabulary,
C kept tokens of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.stages.samples.batch import Batch


@dataclass(frozen=True, slots=True)
class Verifier:
    """The verifier's side of a batch on the draft vocabulary.

    `logits` maps pre-norm final states [R, H] to logits float32 [R, D], the caller's own (asked
    only in the logits mode `final`); `draft_ids_V` is int64 [V], -1 outside D; `target_ids_D` is
    int64 [D].
    """

    logits: Callable[[Tensor], Tensor]
    draft_ids_V: Tensor
    target_ids_D: Tensor

    def scores(self, batch: Batch, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the draft tokens at verifier rows of a batch, [R, D], the caller's own, and
        their log Z, [R]: log p = scores - log Z.

        p is normalised over the whole vocabulary. In the logits mode `topk` the tokens that were
        not kept have p = 0 (a score of -inf).
        """
        if batch.final_SH is not None:
            logits_RD = self.logits(batch.final_SH[rows])
            return logits_RD, batch.logz_S[rows].to(logits_RD.dtype)
        if batch.topk_ids_SC is not None and batch.topk_logp_SC is not None:
            logp_RD = self._kept(batch.topk_ids_SC[rows], batch.topk_logp_SC[rows])
        else:
            assert batch.logp_SV is not None, "a batch holds one of the three logits modes"
            logp_RD = batch.logp_SV[rows][:, self.target_ids_D].float()
        return logp_RD, logp_RD.new_zeros(len(logp_RD))

    def logp(self, batch: Batch, rows: slice | Tensor) -> Tensor:
        """log p of the draft tokens, [R, D]; see `scores`."""
        scores_RD, logz_R = self.scores(batch, rows)
        return scores_RD.sub_(logz_R.unsqueeze(1))

    def _kept(self, ids_RC: Tensor, logp_RC: Tensor) -> Tensor:
        logp_RD = torch.full(
            (len(ids_RC), len(self.target_ids_D)), -torch.inf, device=ids_RC.device
        )
        draft_RC = self.draft_ids_V[ids_RC.long()]
        row, column = torch.nonzero(draft_RC >= 0, as_tuple=True)
        logp_RD[row, draft_RC[row, column]] = logp_RC[row, column].float()
        return logp_RD
