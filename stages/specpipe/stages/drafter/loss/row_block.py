"""Blocks of rows that are walked together, so that every pass finds them in the caches.

Legend: B rows of a block, D draft vocabulary, G columns of a group.
"""

import torch
from torch import Tensor

_GROUP = 256


def block_rows(size: int, device: torch.device) -> int:
    """Rows of `size` numbers: what the caches hold on a CPU, many at once on a GPU."""
    numbers = 2**19 * torch.get_num_threads() if device.type == "cpu" else 2**24
    return max(1, numbers // size)


def argmax_of_rows(x_BD: Tensor) -> Tensor:
    """The first largest column of each row, int64 [B], as `argmax`, whose inner loop is slow:
    first the group of columns that holds it, by `amax`, whose inner loop is fast."""
    num_grouped = x_BD.shape[1] // _GROUP * _GROUP
    if not num_grouped:
        return x_BD.argmax(-1)
    groups_BGG = x_BD[:, :num_grouped].unflatten(1, (-1, _GROUP))
    group_B = groups_BGG.amax(-1).argmax(-1)
    inside_BG = groups_BGG[torch.arange(len(x_BD), device=x_BD.device), group_B]
    best_B: Tensor = group_B * _GROUP + inside_BG.argmax(-1)
    if num_grouped == x_BD.shape[1]:
        return best_B
    rest_BG = x_BD[:, num_grouped:]
    top_B = x_BD.gather(1, best_B.unsqueeze(1)).squeeze(1)
    return torch.where(rest_BG.amax(-1) > top_B, num_grouped + rest_BG.argmax(-1), best_B)
