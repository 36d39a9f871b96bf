"""The measures of each start and head; they do not depend on the loss that is trained.

Legend: M measures, K heads, N starts.
"""

from torch import Tensor

from specpipe.stages.samples.batch import Batch

MEASURES = (
    "alpha",
    "lk",  # -log alpha
    "kl",
    "ce",  # -log q(token); 0 where the token is outside D
    "in_vocabulary",  # 1 where the token is in D
    "mass",  # m = sum of p over D
    "accept",  # w = min(1, q(token) / p(token)); 0 where the token is outside D
    "greedy_match",  # argmax q == argmax p
    "greedy_text",  # argmax q == token
)
NUM_MEASURES = len(MEASURES)


def sum_over_starts(values_KN: Tensor, batch: Batch) -> Tensor:
    """Sum over each head's valid starts, weighted by multiplicity: float64 [K].

    Sums of micro-batches and of ranks add up; over `Denominators.starts_K` they are means.
    """
    weights_KN = (batch.rows_KN >= 0) * batch.weights_N.double()
    return (values_KN.double() * weights_KN).sum(1)


def alpha_sums_of(measures_MKN: Tensor, batch: Batch) -> Tensor:
    """Numerators of each head's mean alpha, float64 [K], from measures that are there anyway."""
    return sum_over_starts(measures_MKN[MEASURES.index("alpha")], batch)
