"""Whatever happens to a dump, `train` stops before a step uses it, whatever is verified first.

Legend: L aux layers, H hidden.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import AUX_SCALES_FILE
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.storage.chunks.arrays import array_names
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.samples import (
    StoredSample,
    samples_from_parquet,
    samples_to_parquet,
)
from specpipe.stages.storage.shard.scales import read_scales
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.train.run import run
from tests.storage.damages import (
    DAMAGES,
    chunk_key,
    copy_objects,
    replace_rows,
    stored_rows,
)
from tests.storage.tiny import replace_manifest, replace_object, write_index
from tests.train.conftest import MakeDump, read_metrics

FORMATS: dict[str, dict[str, Any]] = {
    "zarr": {},
    "parquet": {"format": "parquet"},
    "zarr zstd int8": {"compression": "zstd", "states": "int8"},
    "parquet zstd int8": {"format": "parquet", "compression": "zstd", "states": "int8"},
}

Damage = Callable[[Dump], None]


@dataclass(frozen=True)
class Sound:
    """A dump, and what a run on it came to."""

    root: Path
    losses: list[float]


@pytest.fixture(scope="module")
def sounds() -> dict[str, Sound]:
    """By format, as far as they are made."""
    return {}


@pytest.fixture
def make_sound(
    make_dump: MakeDump, sounds: dict[str, Sound], tmp_path: Path
) -> Callable[[str], Sound]:
    def make(format: str) -> Sound:
        if format not in sounds:
            root = make_dump(**FORMATS[format])
            config = make_config(str(root), tmp_path / "sound", "full")
            run(config)
            sounds[format] = Sound(root, losses_of(config))
        return sounds[format]

    return make


def make_config(dump: str, out: Path, preverify: str) -> TrainConfig:
    """Two epochs, so that every shard is opened."""
    settings: dict[str, Any] = {
        "dump": dump,
        "out": str(out),
        "device": "cpu",
        "num_heads": 1,
        "draft_vocab_size": 64,
        "num_epochs": 2,
        "batch_size": 4,
        "held_out_fraction": 0.1,
        "preverify": preverify,
        "prefetch_mib": 0,
    }
    return TrainConfig(**settings)


def losses_of(config: TrainConfig) -> list[float]:
    if not (Path(config.out) / "metrics.jsonl").exists():
        return []
    return [row["draft_loss"] for row in read_metrics(config.out) if "eval" not in row]


def crude(kind: str, name: str) -> Damage:
    """A damage to the first chunk of an array."""

    def damage(dump: Dump) -> None:
        DAMAGES[kind](dump.folder, chunk_key(dump.folder, dump.identity, stored(dump, name), 0))

    return damage


def stored(dump: Dump, name: str) -> str:
    """The array of that name; of `aux`, that of the first layer."""
    return f"aux_{dump.identity.layers[0]}" if name == "aux" else name


def of_another_shard(dump: Dump) -> None:
    first, second = (
        next(
            entry.key
            for entry in dump.manifests[shard].objects
            if "/aux_" in entry.key and not entry.key.endswith("zarr.json")
        )
        for shard in (0, 1)
    )
    dump.folder.write(first, dump.folder.read(second))


def moved(name: str, move: Callable[[Any], Any]) -> Damage:
    """Other rows in the first chunk, with every crc to match but the samples' own."""

    def damage(dump: Dump) -> None:
        rows = stored_rows(dump.folder, dump.identity, stored(dump, name), 0)
        replace_rows(dump.folder, dump.identity, stored(dump, name), 0, move(rows.copy()))

    return damage


def layers_swapped(dump: Dump) -> None:
    """The first chunks of two layers, with every crc to match but the samples' own."""
    first, second = (f"aux_{layer}" for layer in dump.identity.layers[:2])
    rows = {name: stored_rows(dump.folder, dump.identity, name, 0) for name in (first, second)}
    replace_rows(dump.folder, dump.identity, first, 0, rows[second])
    replace_rows(dump.folder, dump.identity, second, 0, rows[first])


def other_samples(change: Callable[[StoredSample], StoredSample]) -> Damage:
    """Another first sample in samples.parquet, with every crc to match."""

    def damage(dump: Dump) -> None:
        key = f"{dump.manifests[0].folder}/samples.parquet"
        names = array_names(dump.identity)
        first, *rest = samples_from_parquet(dump.folder.read(key), names, key)
        data = samples_to_parquet([change(first), *rest], names)
        replace_object(dump.folder, dump.identity, key, data)

    return damage


def other_token(sample: StoredSample) -> StoredSample:
    ids_T = sample.input_ids.copy()
    ids_T[-1] ^= 1
    return replace(sample, input_ids=ids_T)


def token_out_of_range(sample: StoredSample) -> StoredSample:
    ids_T = sample.input_ids.copy()
    ids_T[-1] = 10_000
    return replace(sample, input_ids=ids_T)


def other_mask(sample: StoredSample) -> StoredSample:
    """One token supervised less, another more: the number of verifier rows is the same."""
    mask_T = sample.loss_mask.copy()
    mask_T[-1], mask_T[1] = mask_T[1], mask_T[-1]
    return replace(sample, loss_mask=mask_T)


def foreign_manifest(dump: Dump) -> None:
    replace_manifest(dump.folder, dump.identity, dump.manifests[0], fingerprint="0" * 64)


def foreign_scales(dump: Dump) -> None:
    channel_LH = read_scales(dump.folder, dump.identity).channel_LH
    dump.folder.write(AUX_SCALES_FILE, save({"channel_scale": channel_LH * 2}))
    write_index(dump.folder, dump.identity)


def short_head(dump: Dump) -> None:
    DAMAGES["half"](dump.folder, "target/head.safetensors")


def last_first(rows: Any) -> Any:
    return np.roll(rows, 1, axis=0)


def not_a_number(rows: Any) -> Any:
    rows[0] = np.nan if rows.dtype.kind == "f" else 0x7FC0
    return rows


COMMON: dict[str, Damage] = {
    "chunk flipped": crude("middle byte flipped", "aux"),
    "last byte of a chunk flipped": crude("last byte flipped", "logz"),
    "chunk truncated": crude("half", "aux"),
    "chunk emptied": crude("emptied", "argmax"),
    "chunk removed": crude("removed", "aux"),
    "chunk of another shard": of_another_shard,
    "layers swapped": layers_swapped,
    "rows shifted": moved("aux", last_first),
    "scalars shifted": moved("token_logprob", last_first),
    "logz not a number": moved("logz", not_a_number),
    "other token": other_samples(other_token),
    "token out of range": other_samples(token_out_of_range),
    "other mask": other_samples(other_mask),
    "foreign manifest": foreign_manifest,
    "short head": short_head,
}
FINAL = {
    "state not a number": moved("final", not_a_number),
    "final states shifted": moved("final", last_first),
}
INT8 = {"foreign scales": foreign_scales, "scales shifted": moved("aux_scale", last_first)}
PACKED = {name: COMMON[name] for name in ("chunk flipped", "layers swapped", "other mask")}
OF_FORMAT: dict[str, dict[str, Damage]] = {
    "zarr": COMMON | FINAL,
    "parquet": COMMON | FINAL,
    "zarr zstd int8": PACKED | FINAL | INT8,
    "parquet zstd int8": PACKED | FINAL | INT8,
}
BEFORE_ANY_STEP = ("token", "mask", "manifest", "head", "truncated", "emptied", "removed")
"""What shows in the records, or in the sizes of objects, which every run looks at first."""


CASES = [
    pytest.param(format, kind, marks=() if format == "zarr" else pytest.mark.slow)
    for format, kinds in OF_FORMAT.items()
    for kind in kinds
]
"""All, of which the fast tests take one format."""


@pytest.mark.parametrize("preverify", ["full", "metadata"])
@pytest.mark.parametrize(("format", "kind"), CASES)
def test_no_damaged_sample_in_a_step(
    format: str, kind: str, preverify: str, make_sound: Callable[[str], Sound], tmp_path: Path
) -> None:
    sound = make_sound(format)
    root = shutil.copytree(sound.root, tmp_path / "dump")
    assert_is_refused(str(root), OF_FORMAT[format][kind], kind, preverify, sound, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preverify", ["full", "metadata"])
@pytest.mark.parametrize(
    "kind", ["chunk flipped", "chunk truncated", "chunk removed", "other mask"]
)
@pytest.mark.parametrize("format", ["zarr", "parquet"])
def test_no_damaged_sample_from_an_object_store(
    format: str,
    kind: str,
    preverify: str,
    make_sound: Callable[[str], Sound],
    s3_root: str,
    tmp_path: Path,
) -> None:
    """Crude damages and one with every crc to match: the store is all that is different."""
    sound = make_sound(format)
    copy_objects(Folder.open(str(sound.root)), Folder.open(s3_root))
    assert_is_refused(s3_root, COMMON[kind], kind, preverify, sound, tmp_path)


def assert_is_refused(
    root: str, damage: Damage, kind: str, preverify: str, sound: Sound, tmp_path: Path
) -> None:
    damage(Dump.open(root))
    config = make_config(root, tmp_path / "run", preverify)
    with pytest.raises(IntegrityError) as raised:
        run(config)
    assert raised.value.exit_code == 4
    losses = losses_of(config)
    # Only steps of sound samples were taken: they came to what they came to without the damage.
    assert losses == sound.losses[: len(losses)]
    assert len(losses) < len(sound.losses)
    if preverify == "full" or any(word in kind for word in BEFORE_ANY_STEP):
        assert losses == []
