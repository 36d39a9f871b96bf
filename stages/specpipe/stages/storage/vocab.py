"""How often each token is a target, and how probable the verifier finds it: vocab.parquet.

Legend: V vocabulary, D draft vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.tables import encode_table
from specpipe.stages.untrusted.parquet import TableBounds, read_table

_SMALLEST_DRAFT = 256
_SCHEMA = pa.schema([("token_id", pa.int32()), ("count", pa.int64()), ("mass", pa.float64())])


@dataclass(frozen=True, slots=True)
class VocabStatistics:
    """Sums over verifier rows, each weighted by its sample's multiplicity."""

    count_V: npt.NDArray[np.int64]
    """Rows whose next token in the text this is."""
    mass_V: npt.NDArray[np.float64]
    """Summed probability under the verifier."""

    @classmethod
    def zeros(cls, vocab_size: int) -> "VocabStatistics":
        return cls(np.zeros(vocab_size, np.int64), np.zeros(vocab_size, np.float64))

    def add(self, other: "VocabStatistics") -> None:
        """Add another sum to this one, in place."""
        self.count_V[:] += other.count_V
        self.mass_V[:] += other.mass_V

    def times(self, weight: float) -> "VocabStatistics":
        """Sums of so many passes; counts are rounded."""
        count_V = np.rint(self.count_V * weight).astype(np.int64)
        return VocabStatistics(count_V, self.mass_V * weight)

    def attainable_mass(self) -> dict[int, float]:
        """m for draft vocabularies of 256, 512, ... and V tokens, the largest acceptance they
        allow: the probability on the D most probable tokens. Empty where nothing was counted."""
        mass_V = np.sort(self.mass_V)[::-1]
        total = mass_V.sum()
        if total == 0:
            return {}
        sizes = [1 << k for k in range(_SMALLEST_DRAFT.bit_length() - 1, len(mass_V).bit_length())]
        sizes = [size for size in sizes if size < len(mass_V)] + [len(mass_V)]
        return {size: float(mass_V[:size].sum() / total) for size in sizes}

    def to_parquet(self) -> bytes:
        """One row per token that has a count or a mass, token ids ascending."""
        ids = np.flatnonzero((self.count_V != 0) | (self.mass_V != 0))
        columns = [ids.astype(np.int32), self.count_V[ids], self.mass_V[ids]]
        return encode_table(pa.table(columns, schema=_SCHEMA))

    @classmethod
    def from_parquet(cls, data: bytes, vocab_size: int, where: str) -> "VocabStatistics":
        """Raises IntegrityError, naming `where`, if the data is not such a table."""
        table = read_table(data, _SCHEMA, TableBounds(vocab_size, vocab_size), where)
        ids, count, mass = (table.column(name).to_numpy() for name in _SCHEMA.names)
        if len(ids) and not (ids[0] >= 0 and ids[-1] < vocab_size and (np.diff(ids) > 0).all()):
            raise IntegrityError(f"{where}: token ids are not ascending in [0, {vocab_size})")
        if not (np.isfinite(mass).all() and (mass >= 0).all() and (count >= 0).all()):
            raise IntegrityError(f"{where} holds a count or mass that is negative or not finite")
        statistics = cls.zeros(vocab_size)
        statistics.count_V[ids] = count
        statistics.mass_V[ids] = mass
        return statistics
