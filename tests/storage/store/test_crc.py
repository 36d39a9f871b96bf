"""crc32c against the published check value, and of concatenations."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specpipe.stages.storage.store.crc import concat_crc32c, crc32c


def test_the_check_value_of_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_any_view_of_bytes_will_do() -> None:
    data = bytearray(b"123456789")
    for view in (data, memoryview(data), memoryview(data).toreadonly(), np.frombuffer(data, "u1")):
        assert crc32c(view) == 0xE3069283
    assert crc32c(b"") == crc32c(np.empty(0, np.uint8)) == 0


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_concatenation(first: bytes, second: bytes) -> None:
    whole = crc32c(first + second)
    assert concat_crc32c(crc32c(first), crc32c(second), len(second)) == whole
    assert crc32c(second, crc32c(first)) == whole


def test_concatenation_of_long_pieces() -> None:
    data = np.random.default_rng(0).integers(0, 256, 5_000_011, dtype=np.uint8)
    a, b = data[:1_234_567], data[1_234_567:]
    assert concat_crc32c(crc32c(a), crc32c(b), len(b)) == crc32c(data)
