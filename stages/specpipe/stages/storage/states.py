"""What is stored of the target's pass over tokens.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U16 = npt.NDArray[np.uint16]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

_BLOCK = 1 << 17  # Elements whose two passes fit into a core's cache.
_INF_BITS = 0x7F80


@dataclass(frozen=True, slots=True)
class SampleStates:
    """States of one sample, or of consecutive samples; bfloat16 is carried as its bits."""

    aux_TLH: U16
    """bfloat16: the residual stream that enters each auxiliary layer, at all positions."""
    final_SH: U16
    """bfloat16: the last layer's output before the final norm, at the verifier rows."""
    logz_S: F32
    """Log-sum-exp of the verifier's logits."""
    token_logprob_S: F32
    """The verifier's log-probability of the token that follows."""
    argmax_S: I32
    """The verifier's most likely next token."""


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
