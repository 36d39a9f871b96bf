"""The states that a dump stores of the target's pass over tokens.

Legend: T tokens, S verifier rows, L aux layers, H hidden, K kept logits, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

U16 = npt.NDArray[np.uint16]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

FIELDS = {
    "aux": "aux_TLH",
    "final": "final_SH",
    "topk_ids": "topk_ids_SK",
    "topk_logits": "topk_logits_SK",
    "logits": "logits_SV",
    "logz": "logz_S",
    "token_logprob": "token_logprob_S",
    "argmax": "argmax_S",
}
"""Field of SampleStates by the array that stores it."""

_BLOCK = 1 << 17  # Elements whose two passes fit into a core's cache.
_INF_BITS = 0x7F80


@dataclass(frozen=True, slots=True)
class SampleStates:
    """States of one sample, or of consecutive samples; bfloat16 is carried as its bits.

    Of the fields that may be None, those of the dump's logits mode are set.
    """

    aux_TLH: U16
    """bfloat16: the residual stream that enters each auxiliary layer, at all positions."""
    logz_S: F32
    """Log-sum-exp of the verifier's logits."""
    token_logprob_S: F32
    """The verifier's log-probability of the token that follows."""
    argmax_S: I32
    """The verifier's most likely next token."""
    final_SH: U16 | None = None
    """Mode `final`; bfloat16: the last layer's output before the final norm, at verifier rows."""
    topk_ids_SK: I32 | None = None
    """Mode `topk:K`: the most likely next tokens, the likeliest first."""
    topk_logits_SK: U16 | None = None
    """Mode `topk:K`; bfloat16: their log-probabilities."""
    logits_SV: U16 | None = None
    """Mode `full`; bfloat16: the log-probability of every token."""

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The fields that are set, by the names of the arrays that store them."""
        values = {name: getattr(self, field) for name, field in FIELDS.items()}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def of_columns(cls, columns: dict[str, npt.NDArray[Any]]) -> "SampleStates":
        return cls(**{FIELDS[name]: values for name, values in columns.items()})


def bfloat16_is_finite(bits: U16) -> bool:
    """Whether no bfloat16 value is infinite or not a number; `bits` is contiguous.

    As signed numbers, the bits of positive values up to +inf and NaN ascend; as unsigned numbers,
    those of negative values do.
    """
    flat = bits.reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        if block.view(np.int16).max() >= _INF_BITS or block.max() >= 0x8000 | _INF_BITS:
            return False
    return True
