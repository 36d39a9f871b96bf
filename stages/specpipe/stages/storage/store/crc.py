"""CRC-32C (Castagnoli) of bytes, of concatenations, and of stored objects.

The concatenation rule lets one pass over the data give the crc of overlapping pieces: the crc of a
chunk and of the samples in it follow from the crcs of their common segments.
"""

from functools import cache

import google_crc32c
import numpy as np
import numpy.typing as npt

from specpipe.schemas.records.dump import CHUNK_TRAILER_BYTES, ObjectEntry

Bytes = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

# The reflected Castagnoli polynomial: bit 31 is x^0, as in the crc register.
_POLYNOMIAL = 0x82F63B78
_ONE = 1 << 31
_SHORT = 2**15
"""Bytes that are sooner gone through again than their crc is appended to another."""


def crc32c(data: Bytes, crc: int = 0) -> int:
    """crc32c of `data`, or of the bytes whose crc is `crc` followed by `data`. Copies nothing."""
    # google_crc32c takes no memoryview, but any numpy view of the same memory.
    return int(google_crc32c.extend(crc, np.frombuffer(data, dtype=np.uint8)))


def concat_crc32c(first: int, second: int, num_bytes: int) -> int:
    """crc32c of A + B from the crcs of A and of B and the length of B in bytes.

    crc(A + B) = crc(A) * x^(8 * len B) + crc(B) over GF(2) modulo the polynomial, as in zlib's
    crc32_combine.
    """
    if first == 0:  # Of nothing, as a rule.
        return second
    for n in range(num_bytes.bit_length()):
        if num_bytes >> n & 1:
            lowest, low, high, highest = _shift_tables(n)
            first = (
                lowest[first & 0xFF]
                ^ low[first >> 8 & 0xFF]
                ^ high[first >> 16 & 0xFF]
                ^ highest[first >> 24]
            )
    return first ^ second


def extend_crc32c(crc: int, data: Bytes, data_crc: int) -> int:
    """crc32c of the bytes whose crc is `crc` followed by `data`, whose own crc is known."""
    if len(data) < _SHORT:
        return crc32c(data, crc)
    return concat_crc32c(crc, data_crc, len(data))


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


@cache
def _shift_tables(n: int) -> tuple[list[int], ...]:
    """Products of x^(8 * 2^n) and each value of each byte of a crc, the lowest byte first."""
    products = [_multiply(_SQUARES[n + 3], 1 << bit) for bit in range(32)]
    tables = []
    for byte in range(4):
        table = [0]
        for product in products[8 * byte : 8 * byte + 8]:
            table += [value ^ product for value in table]
        tables.append(table)
    return tuple(tables)
