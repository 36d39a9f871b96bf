"""Blocks of rows that are walked together, so that every pass finds them in the caches.

Legend: B rows of a block, D draft vocabulary, G columns of a group.
"""

import torch
from torch import Tensor

_GROUP = 256


def block_rows(size: int, device: torch.device) -> int:
    """Rows of `size` numbers: what the caches hold on a CPU, many at once on a GPU."""
    numbers = 2**18 * torch.get_num_threads() if device.type == "cpu" else 2**24
    return max(1, numbers // size)


def top_of_rows(x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row and its first column, [B], as `max`, whose inner loop is slow:
    first the group of columns that holds it, by `amax`, whose inner loop is fast."""
    num_grouped = x_BD.shape[1] // _GROUP * _GROUP
    if not num_grouped:
        top_B, best_B = x_BD.max(-1)
        return top_B, best_B
    groups_BGG = x_BD[:, :num_grouped].unflatten(1, (-1, _GROUP))
    top_B, group_B = groups_BGG.amax(-1).max(-1)
    inside_BG = groups_BGG[torch.arange(len(x_BD), device=x_BD.device), group_B]
    best_B = inside_BG.argmax(-1).add_(group_B, alpha=_GROUP)
    if num_grouped == x_BD.shape[1]:
        return top_B, best_B
    rest_B, column_B = x_BD[:, num_grouped:].max(-1)
    best_B = torch.where(rest_B > top_B, num_grouped + column_B, best_B)
    return torch.maximum(top_B, rest_B), best_B
