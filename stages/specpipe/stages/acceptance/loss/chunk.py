"""Chunks of verifier rows, with the quantities that every head needs.

Legend: S verifier rows, R rows of a chunk, N starts, K heads, D draft vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.stages.acceptance.loss.row_block import block_rows
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.samples.batch import Batch


@dataclass(frozen=True, slots=True)
class VerifierChunk:
    """Verifier rows [begin, begin + R) of a batch."""

    begin: int
    pt_RD: Tensor
    """p~: p renormalised on D; all 0 in a row that gives D no probability at all."""
    mass_R: Tensor
    """m = sum of p over D."""
    known_R: Tensor
    """Whether the row gives D some probability, be it less than a float holds."""
    entropy_R: Tensor
    """Of p~, nats."""
    token_R: Tensor
    token_draft_R: Tensor
    """Draft id of the token, -1 outside D."""
    token_logprob_R: Tensor
    argmax_R: Tensor
    start_of_row_KR: Tensor
    """The start at which a head is held to the row; -1 where there is none."""

    def of_head(self, k: int) -> tuple[Tensor, Tensor]:
        """Starts of head k that are held to these rows, and the rows' indices in the chunk."""
        at = torch.nonzero(self.start_of_row_KR[k] >= 0).squeeze(1)
        return self.start_of_row_KR[k, at], at


def verifier_chunks(
    batch: Batch, verifier: Verifier, chunk_rows: int, dtype: torch.dtype
) -> Iterator[VerifierChunk]:
    """The batch's verifier rows, `chunk_rows` at a time."""
    num_rows = len(batch.next_token_S)
    start_of_row_KS = batch.rows_KN.new_full((batch.num_heads, num_rows), -1)
    head_K, start = torch.nonzero(batch.rows_KN >= 0, as_tuple=True)
    start_of_row_KS[head_K, batch.rows_KN[head_K, start]] = start
    for begin in range(0, num_rows, chunk_rows):
        rows = slice(begin, min(begin + chunk_rows, num_rows))
        scores_RD, logz_R = verifier.scores(batch, rows)
        pt_RD = scores_RD.to(dtype)
        del scores_RD
        logsum_R, entropy_R = _normalise(pt_RD)
        yield VerifierChunk(
            begin=begin,
            pt_RD=pt_RD,
            mass_R=torch.exp(logsum_R - logz_R.to(dtype)),
            known_R=logsum_R > -torch.inf,
            entropy_R=entropy_R,
            token_R=batch.next_token_S[rows],
            token_draft_R=verifier.draft_ids_V[batch.next_token_S[rows]],
            token_logprob_R=batch.token_logprob_S[rows].to(dtype),
            argmax_R=batch.argmax_S[rows],
            start_of_row_KR=start_of_row_KS[:, rows],
        )
        # Before the next chunk's logits are asked for, this one's must be gone.
        del pt_RD


def _normalise(scores_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Scores become p~, in place; their log-sum-exp (-inf where D has nothing) and p~'s entropy."""
    logsum_R, entropy_R = scores_RD.new_empty(2, len(scores_RD))
    step = block_rows(scores_RD.shape[1], scores_RD.device)
    # In place of log 0, so that 0 log 0 is 0.
    least = torch.finfo(scores_RD.dtype).min / 2
    spare_BD = scores_RD.new_empty(min(step, len(scores_RD)), scores_RD.shape[1])
    for begin in range(0, len(scores_RD), step):
        rows = slice(begin, begin + step)
        scores_BD = scores_RD[rows].clamp_(min=least)
        pt_BD = torch.softmax(scores_BD, -1, out=spare_BD[: len(scores_BD)])
        top_B = scores_BD.amax(-1)
        # The largest of p~ is exp(0) / sum.
        logsum_B = top_B - pt_BD.amax(-1).log()
        entropy_R[rows] = logsum_B - scores_BD.mul_(pt_BD).sum(-1)
        known_B = top_B > least
        logsum_R[rows] = torch.where(known_B, logsum_B, -torch.inf)
        scores_BD.copy_(pt_BD)
        scores_BD[torch.nonzero(~known_B).squeeze(1)] = 0.0
    return logsum_R, entropy_R
