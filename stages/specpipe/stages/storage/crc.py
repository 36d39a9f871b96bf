"""CRC-32C (Castagnoli) of bytes, of concatenations, and of stored objects.

The concatenation rule lets one pass over the data give the crc of overlapping pieces: the crc of a
chunk and of the samples in it follow from the crcs of their common segments.
"""

import google_crc32c
import numpy as np
import numpy.typing as npt

from specpipe.schemas.dump import CHUNK_TRAILER_BYTES, ObjectEntry

Bytes = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

# The reflected Castagnoli polynomial: bit 31 is x^0, as in the crc register.
_POLYNOMIAL = 0x82F63B78
_ONE = 1 << 31


def crc32c(data: Bytes, crc: int = 0) -> int:
    """crc32c of `data`, or of the bytes whose crc is `crc` followed by `data`. Copies nothing."""
    # google_crc32c takes no memoryview, but any numpy view of the same memory.
    return int(google_crc32c.extend(crc, np.frombuffer(data, dtype=np.uint8)))


def concat_crc32c(first: int, second: int, num_bytes: int) -> int:
    """crc32c of A + B from the crcs of A and of B and the length of B in bytes.

    crc(A + B) = crc(A) * x^(8 * len B) + crc(B) over GF(2) modulo the polynomial, as in zlib's
    crc32_combine.
    """
    if first == 0 or num_bytes == 0:
        return first ^ second
    return _multiply(_power_of_x(8 * num_bytes), first) ^ second


def object_entry(key: str, data: Bytes) -> ObjectEntry:
    """The entry of an object that does not end in its own crc."""
    return ObjectEntry(key=key, size=len(data), crc32c=crc32c(data))


def chunk_entry(key: str, size: int, payload_crc: int) -> ObjectEntry:
    """The entry of a chunk object of `size` bytes, its trailer included."""
    return ObjectEntry(key=key, size=size, crc32c=payload_crc, trailer_bytes=CHUNK_TRAILER_BYTES)


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2) modulo the Castagnoli polynomial."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


def _squares() -> list[int]:
    """x^(2^n) for n = 0..63."""
    powers = [_ONE >> 1]
    while len(powers) < 64:
        powers.append(_multiply(powers[-1], powers[-1]))
    return powers


_SQUARES = _squares()


def _power_of_x(exponent: int) -> int:
    power = _ONE
    for n in range(exponent.bit_length()):
        if exponent >> n & 1:
            power = _multiply(_SQUARES[n], power)
    return power
