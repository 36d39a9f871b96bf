"""aux_scales.safetensors: one scale for each channel of each auxiliary layer, fixed for a dump.

Channels of a target's states differ in size by orders of magnitude. Divided by their scales, they
share one scale a token without the small ones being lost.

Legend: T tokens, L aux layers, H hidden.
"""

from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import AUX_SCALES_FILE, DumpIdentity
from specpipe.stages.storage.shard.int8_states import widened
from specpipe.stages.storage.shard.states import F32, U16
from specpipe.stages.storage.store.crc import crc32c
from specpipe.stages.storage.store.folder import HOW_TO_REPAIR, Folder

_TENSOR = "channel_scale"
_RELATIVE_FLOOR = 1e-2
"""Of the median channel of a layer. What a dead channel adds to the error is then below what the
others have, and it does not take up a token's range when it comes alive."""
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class AuxScales:
    """float32 [L, H], positive; `crc32c` is that of the stored object."""

    channel_LH: F32
    crc32c: int

    @classmethod
    def from_states(cls, aux_TLH: U16) -> "AuxScales":
        """The root mean square of each channel over calibration states (bfloat16 bits)."""
        rms_LH = np.stack([_rms(aux_TLH[:, layer]) for layer in range(aux_TLH.shape[1])])
        floor_L1 = _RELATIVE_FLOOR * np.median(rms_LH, axis=1, keepdims=True)
        channel_LH = np.maximum(rms_LH, np.maximum(floor_L1, _FLOOR)).astype(np.float32)
        return cls(channel_LH, crc32c(_to_bytes(channel_LH)))


def write_scales(folder: Folder, identity: DumpIdentity, scales: AuxScales) -> AuxScales:
    """Write the scales unless the dump has some; returns those that count.

    Raises IntegrityError if those in the store are damaged or of another shape.
    """
    if folder.create(AUX_SCALES_FILE, _to_bytes(scales.channel_LH)):
        return scales
    return read_scales(folder, identity)


def read_scales(folder: Folder, identity: DumpIdentity) -> AuxScales:
    """The scales of a dump, `folder` being its root. Raises IntegrityError unless they fit it."""
    where = folder.where(AUX_SCALES_FILE)
    data = folder.read(AUX_SCALES_FILE)
    try:
        tensors = safetensors.numpy.load(data)
    except (SafetensorError, KeyError):
        raise IntegrityError(f"{where} is no safetensors file; {HOW_TO_REPAIR}") from None
    shape = (len(identity.layers), identity.target.hidden_size)
    channel_LH = tensors.get(_TENSOR)
    if (
        tensors.keys() != {_TENSOR}
        or channel_LH is None
        or channel_LH.dtype != np.float32
        or channel_LH.shape != shape
        or not (np.isfinite(channel_LH).all() and (channel_LH > 0).all())
    ):
        raise IntegrityError(
            f"{where} does not hold a positive float32 {_TENSOR} {list(shape)}; {HOW_TO_REPAIR}"
        )
    return AuxScales(channel_LH, crc32c(data))


def _rms(states_TH: U16) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    squares_TH = np.square(widened(states_TH), dtype=np.float64)
    rms_H: np.ndarray[tuple[int], np.dtype[np.float64]] = np.sqrt(squares_TH.mean(axis=0))
    return rms_H


def _to_bytes(channel_LH: F32) -> bytes:
    data: bytes = safetensors.numpy.save({_TENSOR: channel_LH})
    return data
