"""Auxiliary states in 8 bits: value = q * the token's scale * the channel's scale.

Legend: T tokens, B tokens of a block, L aux layers, H hidden.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.shard.states import F32, U16

I8 = npt.NDArray[np.int8]
F64 = npt.NDArray[np.float64]

_STEPS = 127
_BLOCK = 1 << 17
"""Elements of a block: a few arrays of them fit into a core's cache."""


class Quantiser:
    """Rounds states to 8 bits, and sums the rounding error."""

    def __init__(self, channel_LH: F32) -> None:
        self._channel_LH = channel_LH
        self._inverse_LH = 1 / channel_LH
        self._error_L: F64 = np.zeros(len(channel_LH))
        self._norm_L: F64 = np.zeros(len(channel_LH))

    def quantise(self, aux_TLH: U16) -> tuple[I8, F32]:
        """int8 [T, L, H] and the scale of each token and layer, float32 [T, L].

        A token's largest value becomes 127 steps, the others are rounded to the nearest step.
        Raises IntegrityError for states that are not finite, or too large for it.
        """
        steps_TLH = np.empty(aux_TLH.shape, np.int8)
        scale_TL = np.empty(aux_TLH.shape[:2], np.float32)
        norm_L, error_L = np.zeros_like(self._norm_L), np.zeros_like(self._error_L)
        for block in _blocks(aux_TLH.shape):
            aux_BLH = widened(aux_TLH[block])
            with np.errstate(over="ignore"):
                scaled_BLH = aux_BLH * self._inverse_LH
                scale_BL = np.abs(scaled_BLH).max(axis=2) / np.float32(_STEPS)
            if not np.isfinite(scale_BL).all():
                raise IntegrityError("aux is not finite, or too large to be stored as int8")
            # Nothing but zeros, or too small for a scale that has an inverse.
            has_scale_BL = scale_BL > np.finfo(np.float32).tiny
            inverse_BL = np.divide(1, scale_BL, out=np.zeros_like(scale_BL), where=has_scale_BL)
            scaled_BLH *= inverse_BL[..., None]
            steps_TLH[block] = np.rint(scaled_BLH, out=scaled_BLH)
            scale_TL[block] = scale_BL
            # Of what a reader gets, its rounding to bfloat16 included.
            read_BLH = widened(self._dequantised(steps_TLH[block], scale_BL))
            norm_L += _squares(aux_BLH)
            error_L += _squares(np.subtract(read_BLH, aux_BLH, out=read_BLH))
        self._norm_L += norm_L
        self._error_L += error_L
        return steps_TLH, scale_TL

    def dequantise(self, steps_TLH: I8, scale_TL: F32) -> U16:
        """bfloat16 bits [T, L, H]."""
        aux_TLH = np.empty(steps_TLH.shape, np.uint16)
        for block in _blocks(steps_TLH.shape):
            aux_TLH[block] = self._dequantised(steps_TLH[block], scale_TL[block])
        return aux_TLH

    def relative_error(self) -> tuple[float, ...]:
        """Norm of the error over norm of the states so far, per layer, to six digits."""
        norm_L = np.where(self._norm_L > 0, self._norm_L, 1)
        return tuple(float(f"{error:.6g}") for error in np.sqrt(self._error_L / norm_L))

    def _dequantised(self, steps_BLH: I8, scale_BL: F32) -> U16:
        aux_BLH = steps_BLH * scale_BL[..., None]
        aux_BLH *= self._channel_LH
        return narrowed(aux_BLH)


def widened(bits: U16) -> F32:
    """bfloat16 bits as float32 values."""
    values: F32 = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def narrowed(values: F32) -> U16:
    """float32 values, none of them NaN, as the bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (bits >> np.uint32(16)).astype(np.uint16)


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    num_tokens, num_layers, hidden = shape
    step = max(1, _BLOCK // max(1, num_layers * hidden))
    for start in range(0, num_tokens, step):
        yield slice(start, start + step)


def _squares(values_BLH: F32) -> F64:
    """Sum of squares per layer."""
    sums: F64 = np.einsum("blh,blh->l", values_BLH, values_BLH, dtype=np.float64)
    return sums
