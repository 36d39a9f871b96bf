"""The damage matrix in an object store.

Reduced, since each case is some fifty requests to a slow local server: one object of each kind (of
all arrays, `aux`) with the commonest damages, and its chunk with all of them. test_damage.py has
them all, and goes through the same code but for the store.
"""

import re

import pytest

from tests.storage.damages import DAMAGES, FORMATS, assert_damage_shows
from tests.storage.tiny import make_identity, make_shards, write_dump

COMMON = ("middle byte flipped", "removed")
_OTHER_ARRAYS = re.compile(r"/(final|logz|token_logprob|argmax)/")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["zarr", "parquet"])
def test_each_kind_of_object(format: str, s3_root: str) -> None:
    identity = make_identity(chunk_tokens=64, **FORMATS[format])
    folder = write_dump(s3_root, identity, make_shards(identity)[:1])
    keys = [key for key in folder.list() if not _OTHER_ARRAYS.search(key)]
    assert len(keys) >= 11
    damaged = set()
    for key in keys:
        written = folder.read(key)
        is_aux = "/aux_1/" in key and not key.endswith("zarr.json")
        for damage in DAMAGES if is_aux else COMMON:
            DAMAGES[damage](folder, key)
            assert_damage_shows(s3_root, damage, key)
            damaged.add(damage)
            folder.write(key, written)
    assert damaged == DAMAGES.keys()


def test_a_chunk_of_another_shard(s3_root: str) -> None:
    identity = make_identity(chunk_tokens=64)
    folder = write_dump(s3_root, identity, make_shards(identity))
    first, second = (key for key in folder.list() if key.endswith("/aux_1/c/0/0"))
    folder.write(first, folder.read(second))
    assert_damage_shows(s3_root, "replaced", first)
