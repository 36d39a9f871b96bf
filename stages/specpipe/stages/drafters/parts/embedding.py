"""The target's token embedding, frozen.

Legend: T tokens, V vocabulary, H width.
"""

from torch import Tensor, nn


class FrozenEmbedding(nn.Module):
    """Rows of a table that is no parameter and stands in no checkpoint.

    `on_cpu` keeps the table in the host's memory wherever the module goes: only the rows of a
    batch are moved.
    """

    table_VH: Tensor

    def __init__(self, table_VH: Tensor, *, on_cpu: bool) -> None:
        super().__init__()
        self.on_cpu = on_cpu
        if on_cpu:
            self._host = [table_VH]  # in a list, which `Module.to` does not look into
        else:
            self.register_buffer("table_VH", table_VH, persistent=False)

    @property
    def table(self) -> Tensor:
        return self._host[0] if self.on_cpu else self.table_VH

    def forward(self, ids_T: Tensor) -> Tensor:
        """[T, H], on the ids' device, in the table's dtype."""
        if not self.on_cpu or ids_T.is_cpu:
            return self.table[ids_T]
        rows_TH = self.table[ids_T.cpu()]
        return rows_TH.pin_memory().to(ids_T.device, non_blocking=True)
