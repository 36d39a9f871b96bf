"""Weights of the draft steps of each start by D-PACE (arXiv 2605.18810).

A draft step counts by what depends on it: with a start's confidence q_k = q(token) of step k,
smoothed to s_k = (1 - a) q_k + a,

    w_j = sum over the steps m >= j of s_1 ... s_m

is the number of drafts from step j on that a round is expected to keep, but for the smoothing,
which lets later steps learn while earlier ones are poor. speculators 0.9.0 computes the same
(losses/utils.py, `dpace_loss_decay`).

Legend: K heads, N starts, M measures.
"""

import torch
from torch import Tensor

from specpipe.stages.acceptance.loss.measures import MEASURES
from specpipe.stages.samples.batch import Batch


@torch.no_grad()
def dpace_weights(measures_MKN: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """w [K, N] of a batch's starts, from its measures; 0 where a head does not use a start.

    A step that is not used keeps the confidence of those after it as it is. A token outside the
    draft vocabulary has q = 0.
    """
    by_name = dict(zip(MEASURES, measures_MKN, strict=True))
    used_KN = batch.rows_KN >= 0
    q_KN = torch.exp(-by_name["ce"]) * by_name["in_vocabulary"]
    smooth_KN = torch.where(used_KN, (1 - smoothing) * q_KN + smoothing, 1.0)
    prefix_KN = torch.cumprod(smooth_KN, dim=0) * used_KN
    return prefix_KN.flip(0).cumsum(0).flip(0) * used_KN
