"""The next token from logits, for each row by a random stream of its own.

Legend: B rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specpipe.schemas.settings.stages import GenerateConfig


class Sampler:
    """Chooses tokens for some prompts; each has a seed, and draws one number for each token.

    So a prompt's tokens do not depend on what else is sampled with it.
    """

    def __init__(self, settings: GenerateConfig, seeds: Sequence[int]) -> None:
        self._temperature = settings.temperature
        self._top_p = settings.top_p
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def choose(self, logits_BV: Tensor, prompts: Sequence[int]) -> Tensor:
        """int64 [B]: a token for each row of fp32 logits, row b being of prompt `prompts[b]`."""
        if self._temperature == 0:
            return logits_BV.argmax(-1)
        probs_BV = (logits_BV / self._temperature).softmax(-1)
        if self._top_p < 1:
            probs_BV = _likeliest(probs_BV, self._top_p)
        draws = [torch.rand((), dtype=torch.float64, generator=self._streams[at]) for at in prompts]
        summed_BV = probs_BV.cumsum(-1, dtype=torch.float64)
        total_B = summed_BV[:, -1]
        # Below the total, so that no token of probability 0 is ever beyond the last step.
        point_B = torch.stack(draws).to(total_B.device) * total_B
        point_B = point_B.minimum(total_B.nextafter(torch.zeros_like(total_B)))
        chosen_B1 = torch.searchsorted(summed_BV, point_B[:, None], right=True)
        # Logits that are not finite give no sum; their states are refused later.
        return chosen_B1[:, 0].clamp(max=logits_BV.shape[1] - 1)


def _likeliest(probs_BV: Tensor, top_p: float) -> Tensor:
    """The probabilities of the fewest tokens that have `top_p` together, and 0 for all others."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1, dtype=torch.float64) - sorted_BV
    kept_BV = sorted_BV.where(before_BV < top_p, 0.0)
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, kept_BV)
