"""Damage that every crc agrees with is found before a step uses it, whatever is verified first."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from specpipe.schemas.dump import CHUNK_TRAILER_BYTES
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.arrays import array_names
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.samples import samples_from_parquet, samples_to_parquet
from specpipe.stages.train.run import run
from tests.storage.tiny import replace_manifest, replace_object
from tests.train.conftest import MakeConfig, MakeDump, read_metrics


def _payload(dump: Dump, name: str) -> tuple[str, bytes]:
    """Key and payload of the first chunk of an array of shard 0."""
    key = f"{dump.manifests[0].folder}/states.zarr/{name}"
    return key, dump.folder.read(key)[:-CHUNK_TRAILER_BYTES]


def swap_layers(dump: Dump) -> None:
    key, payload = _payload(dump, "aux/c/0/0/0")
    num_layers, hidden = len(dump.identity.layers), dump.identity.target.hidden_size
    aux_TLH = np.frombuffer(payload, np.uint16).reshape(-1, num_layers, hidden)
    replace_object(dump.folder, dump.identity, key, aux_TLH[:, [1, 0, 2]].tobytes())


def nan_in_states(dump: Dump) -> None:
    key, payload = _payload(dump, "final/c/0/0")
    replace_object(dump.folder, dump.identity, key, b"\xc0\x7f" + payload[2:])


def foreign_manifest(dump: Dump) -> None:
    replace_manifest(dump.folder, dump.identity, dump.manifests[0], fingerprint="0" * 64)


def token_out_of_range(dump: Dump) -> None:
    key = f"{dump.manifests[0].folder}/samples.parquet"
    arrays = array_names(dump.identity)
    samples = samples_from_parquet(dump.folder.read(key), arrays, key)
    ids_T = samples[0].input_ids
    ids_T[-1] = dump.identity.target.vocab_size
    replace_object(dump.folder, dump.identity, key, samples_to_parquet(samples, arrays))


def short_head(dump: Dump) -> None:
    data = dump.folder.read("target/head.safetensors")
    dump.folder.write("target/head.safetensors", data[: len(data) // 2])


@pytest.mark.parametrize("preverify", ["auto", "metadata"])
@pytest.mark.parametrize(
    "damage", [swap_layers, nan_in_states, foreign_manifest, token_out_of_range, short_head]
)
def test_no_damaged_sample_in_a_step(
    damage: Callable[[Dump], None], preverify: str, make_dump: MakeDump, make_config: MakeConfig
) -> None:
    root = make_dump()
    damage(Dump.open(str(root)))
    config = make_config(dump=str(root), preverify=preverify, batch_size=4, max_steps=40)
    with pytest.raises(IntegrityError) as raised:
        run(config)
    assert raised.value.exit_code == 4
    metrics = Path(config.out) / "metrics.jsonl"
    steps = [r for r in read_metrics(config.out) if "eval" not in r] if metrics.exists() else []
    # Only what was read from sound shards before the damaged one was opened.
    assert len(steps) < 40
    if preverify == "auto" or damage in (foreign_manifest, token_out_of_range, short_head):
        assert steps == []
