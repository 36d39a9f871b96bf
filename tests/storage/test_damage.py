"""Whatever happens to whichever object: verify names it, and no reader uses it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError as PydanticError
from safetensors.numpy import save

from specpipe.schemas.dump import (
    AUX_SCALES_FILE,
    DumpIdentity,
    ObjectEntry,
    TextOrigin,
    manifest_key,
)
from specpipe.schemas.errors import ConfigError, IntegrityError, UnfinishedError
from specpipe.schemas.sample import Sample
from specpipe.stages.storage.arrays import array_names
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.records import read_manifest
from specpipe.stages.storage.samples import StoredSample, samples_from_parquet, samples_to_parquet
from specpipe.stages.storage.scales import read_scales
from specpipe.stages.storage.shard_reader import ShardReader
from specpipe.stages.storage.states import SampleStates
from specpipe.stages.storage.verify import verify
from tests.storage.damages import (
    DAMAGES,
    FORMATS,
    assert_every_damage_shows,
    chunk_key,
    manifest_of,
    replace_rows,
    stored_rows,
)
from tests.storage.tiny import (
    equal_states,
    make_identity,
    make_shards,
    replace_manifest,
    replace_object,
    use_everything,
    write_dump,
    write_index,
    write_shard,
)

SHARD = "shards/000000-0000000000000001"
AUX = f"{SHARD}/states.zarr/aux/c/0/0/0"


@pytest.fixture(scope="module")
def identity() -> DumpIdentity:
    return make_identity(chunk_tokens=4)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, identity: DumpIdentity) -> Path:
    path = tmp_path_factory.mktemp("sound") / "dump"
    write_dump(str(path), identity, make_shards(identity))
    return path


@pytest.fixture
def dump(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(sound, tmp_path / "dump")


def dump_in(format: str, path: Path) -> tuple[DumpIdentity, Folder]:
    # Bytes of a row, and with them those of a chunk, are halved in int8.
    identity = make_identity(chunk_tokens=8 if "int8" in format else 4, **FORMATS[format])
    return identity, write_dump(str(path), identity, make_shards(identity))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", DAMAGES)
def test_every_object(format: str, kind: str, tmp_path: Path) -> None:
    _, folder = dump_in(format, tmp_path)
    keys = folder.list()
    assert len(keys) > 35
    assert_every_damage_shows(str(tmp_path), kind, keys)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("other", ["another shard", "another attempt"])
def test_every_object_replaced_by_that_of(other: str, format: str, tmp_path: Path) -> None:
    """The same samples with other states, or other samples: an object for every one there is."""
    identity, folder = dump_in(format, tmp_path / "dump")
    shards = make_shards(identity)
    if other == "another shard":
        shards.reverse()
    else:
        shards = [[(sample, shifted(states)) for sample, states in pairs] for pairs in shards]
    others = write_dump(str(tmp_path / "other"), identity, shards)
    num_replaced = 0
    for key in sorted({*folder.list()} & {*others.list()}):
        written, replacement = folder.read(key), others.read(key)
        if written == replacement:
            continue
        num_replaced += 1
        folder.write(key, replacement)
        damages = {damage.key for damage in verify(folder.url).damages}
        # An index that is not of these manifests names them.
        assert damages if key == "index.json" else key in damages, key
        with pytest.raises(IntegrityError):
            use_everything(folder.url)
        folder.write(key, written)
    assert num_replaced > 20
    assert verify(folder.url).damages == ()


def shifted(states: SampleStates) -> SampleStates:
    """Every row but the first is the one before it."""
    columns = {name: np.roll(v, 1, axis=0) for name, v in states.columns().items()}
    return SampleStates.of_columns(columns)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["middle byte flipped", "removed", "half"])
def test_reading_at_random_uses_nothing_damaged(format: str, kind: str, tmp_path: Path) -> None:
    """Without any check beforehand: a sample whose rows are damaged is not returned."""
    identity, folder = dump_in(format, tmp_path)
    manifest = manifest_of(folder, identity)
    reader = ShardReader(folder, identity, manifest)
    sound = {sample.sample_id: reader.read_sample(sample) for sample in reader.samples()}
    chunks = [e.key for e in manifest.objects if "/states." in e.key and "zarr.json" not in e.key]
    assert len(chunks) > 8
    num_refused = 0
    for key in chunks:
        written = folder.read(key)
        DAMAGES[kind](folder, key)
        reader = ShardReader(folder, identity, manifest)
        for sample in reader.samples():
            try:
                states = reader.read_sample(sample)
            except IntegrityError:
                num_refused += 1
            else:
                assert equal_states(states, sound[sample.sample_id])
        folder.write(key, written)
    assert num_refused >= len(chunks)


def named(dump: Path) -> dict[str, str]:
    return {damage.key: damage.problem for damage in verify(str(dump)).damages}


@pytest.mark.parametrize("format", FORMATS)
def test_two_layers_swapped_with_every_crc_to_match(format: str, tmp_path: Path) -> None:
    identity, folder = dump_in(format, tmp_path)
    rows = stored_rows(folder, identity, "aux", 0)
    replace_rows(folder, identity, "aux", 0, rows[:, [1, 0, 2]])
    problems = named(tmp_path)
    # The first sample has 13 tokens; which of its chunks is wrong cannot be known.
    touched = range(-(-13 // manifest_of(folder, identity).chunk_rows["aux"]))
    assert [*problems] == [chunk_key(folder, identity, "aux", index) for index in touched]
    first = problems[chunk_key(folder, identity, "aux", 0)]
    assert "does not hold what was written of aux of sample" in first
    reader = Dump.open(str(tmp_path)).shard(0)
    with pytest.raises(IntegrityError, match="does not hold what was written of aux"):
        reader.read_all()
    with pytest.raises(IntegrityError, match=r"aux of sample .* is not what was written"):
        reader.read_sample(reader.samples()[0])
    reader.read_sample(reader.samples()[1])


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("zarr", "final"),
        ("parquet", "final"),
        ("zarr zstd int8 topk", "topk_ids"),
        ("zarr zstd int8 topk", "topk_logits"),
        ("parquet zstd int8 full", "logits"),
    ],
)
def test_two_chunks_swapped_with_every_crc_to_match(format: str, name: str, tmp_path: Path) -> None:
    identity, folder = dump_in(format, tmp_path)
    first, second = (stored_rows(folder, identity, name, index) for index in range(2))
    replace_rows(folder, identity, name, 0, second[: len(first)])
    replace_rows(folder, identity, name, 1, first[: len(second)])
    keys = [chunk_key(folder, identity, name, index) for index in range(2)]
    assert [*named(tmp_path)][:2] == keys
    with pytest.raises(IntegrityError, match=f"does not hold what was written of {name}"):
        Dump.open(str(tmp_path)).shard(0).read_all()


@pytest.mark.parametrize("move", ["reversed", "shifted"])
@pytest.mark.parametrize(
    ("format", "name"),
    [
        (format, name)
        for format in ("zarr zstd int8 topk", "parquet zstd int8 full")
        for name in ("aux", "aux_scale", "logz", "token_logprob", "argmax")
    ]
    + [(format, name) for format in ("zarr", "parquet") for name in ("aux", "final")],
)
def test_rows_moved_with_every_crc_to_match(
    format: str, name: str, move: str, tmp_path: Path
) -> None:
    identity, folder = dump_in(format, tmp_path)
    rows = stored_rows(folder, identity, name, 0)
    moved = rows[::-1] if move == "reversed" else np.roll(rows, 1, axis=0)
    replace_rows(folder, identity, name, 0, moved)
    assert chunk_key(folder, identity, name, 0) in named(tmp_path)
    for read in reads_of(tmp_path):
        with pytest.raises(IntegrityError, match=f"written of {name} of|{name} of sample"):
            read()


def reads_of(dump: Path) -> list[Callable[[], object]]:
    """The ways to the states of the first sample."""
    reader = Dump.open(str(dump)).shard(0)
    return [reader.read_all, lambda: reader.read_sample(reader.samples()[0])]


@pytest.mark.parametrize("format", [name for name in FORMATS if "int8" in name])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda scale_LH: scale_LH * 2, "is not the one that"),
        (lambda scale_LH: scale_LH[:, 1:], "does not hold a positive float32"),
        (lambda scale_LH: scale_LH * 0, "does not hold a positive float32"),
        (lambda scale_LH: scale_LH * np.float32(np.inf), "does not hold a positive float32"),
        (lambda scale_LH: scale_LH.astype(np.float64), "does not hold a positive float32"),
        (None, "is no safetensors file"),
    ],
)
def test_scales_of_another_dump(
    format: str,
    change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None,
    problem: str,
    tmp_path: Path,
) -> None:
    """Listed with the crc that they have: somebody made them anew."""
    identity, folder = dump_in(format, tmp_path)
    channel_LH = read_scales(folder, identity).channel_LH
    data = save({"channel_scale": change(channel_LH)}) if change else b"{}"
    folder.write(AUX_SCALES_FILE, data)
    write_index(folder, identity)
    problems = named(tmp_path)
    assert [*problems] == [AUX_SCALES_FILE]
    assert problem in problems[AUX_SCALES_FILE]
    for read in reads_of(tmp_path):
        with pytest.raises(IntegrityError, match=f"aux_scales.safetensors {problem}"):
            read()


@pytest.mark.parametrize("format", ["zarr", "parquet"])
@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("aux", 1, 0x7FC0),
        ("aux", 1, 0xFF80),
        ("final", 0, 0xFFC0),
        ("logz", 0, np.inf),
        ("token_logprob", 0, np.nan),
        ("argmax", 0, 23),
        ("argmax", 0, -1),
    ],
)
def test_values_that_no_target_produces(
    tmp_path: Path, format: str, name: str, index: int, value: float
) -> None:
    """Written by a writer that did not look: every crc matches."""
    identity = make_identity(chunk_tokens=4, **FORMATS[format])
    shards = make_shards(identity)
    shards[0][0][1].columns()[name][5] = value
    folder = write_dump(str(tmp_path), identity, shards)
    problems, key = named(tmp_path), chunk_key(folder, identity, name, index)
    assert [*problems] == [key]
    what = "outside the vocabulary" if name == "argmax" else "not a number"
    assert what in problems[key]
    for read in reads_of(tmp_path):
        with pytest.raises(IntegrityError, match=what):
            read()


@pytest.mark.parametrize("token_id", [23, -1])
def test_token_ids_out_of_range(tmp_path: Path, identity: DumpIdentity, token_id: int) -> None:
    shards = make_shards(identity)
    sample, states = shards[0][1]
    sample.input_ids[3] = token_id
    renamed = Sample(sample.input_ids, sample.loss_mask, sample.source).sample_id
    shards[0][1] = (replace(sample, sample_id=renamed), states)
    write_dump(str(tmp_path), identity, shards)
    problems = named(tmp_path)
    assert [*problems] == [f"{SHARD}/samples.parquet"]
    assert "outside the vocabulary of 23" in problems[f"{SHARD}/samples.parquet"]
    with pytest.raises(IntegrityError, match="outside the vocabulary of 23"):
        Dump.open(str(tmp_path)).shard(0).samples()


def _token(sample: StoredSample) -> StoredSample:
    ids_T = sample.input_ids.copy()
    ids_T[0] ^= 1
    return replace(sample, input_ids=ids_T)


def _mask(sample: StoredSample) -> StoredSample:
    mask_T = sample.loss_mask.copy()
    mask_T[0] ^= 1
    return replace(sample, loss_mask=mask_T)


def _row(sample: StoredSample) -> StoredSample:
    mask_T = sample.loss_mask.copy()
    mask_T[1] ^= 1
    return replace(sample, loss_mask=mask_T)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: [_token(s[0]), *s[1:]], "hashes of"),
        (lambda s: [_mask(s[0]), *s[1:]], "hashes of"),
        (lambda s: [replace(s[0], prompt_id="0" * 32), *s[1:]], "hashes of"),
        (lambda s: [_row(s[0]), *s[1:]], "does not begin where"),
        (lambda s: [s[0], replace(s[1], offset=14), s[2]], "does not begin where"),
        (lambda s: [s[0], replace(s[1], row_offset=3), s[2]], "does not begin where"),
        (lambda s: s[:2], "its manifest counts 3"),
        (lambda s: [replace(s[0], multiplicity=0), *s[1:]], "multiplicity 0"),
        (lambda s: [replace(s[0], multiplicity=9), *s[1:]], "shard's plan"),
    ],
)
def test_samples_that_disagree(
    dump: Path,
    identity: DumpIdentity,
    change: Callable[[list[StoredSample]], list[StoredSample]],
    problem: str,
) -> None:
    folder, key = Folder.open(str(dump)), f"{SHARD}/samples.parquet"
    names = array_names(identity)
    samples = samples_from_parquet(folder.read(key), names, key)
    replace_object(folder, identity, key, samples_to_parquet(change(samples), names))
    problems = named(dump)
    assert [*problems] == [key]
    assert problem in problems[key]
    if "plan" not in problem:
        with pytest.raises(IntegrityError, match=problem):
            Dump.open(str(dump)).shard(0).read_all()


def test_a_table_of_another_kind(dump: Path, identity: DumpIdentity) -> None:
    folder = Folder.open(str(dump))
    vocab = folder.read(f"{SHARD}/vocab.parquet")
    replace_object(folder, identity, f"{SHARD}/samples.parquet", vocab)
    assert "does not have the columns" in named(dump)[f"{SHARD}/samples.parquet"]
    samples = folder.read("shards/000001-0000000000000002/samples.parquet")
    replace_object(folder, identity, f"{SHARD}/vocab.parquet", samples)
    assert "does not have the columns" in named(dump)[f"{SHARD}/vocab.parquet"]
    with pytest.raises(IntegrityError, match="does not have the columns"):
        Dump.open(str(dump)).shard(0).vocab()


def test_statistics_that_do_not_add_up(dump: Path, identity: DumpIdentity) -> None:
    folder = Folder.open(str(dump))
    folder.write("vocab.parquet", folder.read(f"{SHARD}/vocab.parquet"))
    write_index(folder, identity)
    assert named(dump) == {"vocab.parquet": "is not the sum over the shards"}


def test_zarr_metadata_of_another_array(dump: Path, identity: DumpIdentity) -> None:
    folder, key = Folder.open(str(dump)), f"{SHARD}/states.zarr/aux/zarr.json"
    text = folder.read(key).replace(b'"uint16"', b'"int16"')
    replace_object(folder, identity, key, text)
    assert named(dump) == {key: "does not describe the array that the manifest lists"}


@pytest.mark.parametrize("complete", [True, False])
def test_a_manifest_of_another_dump(dump: Path, identity: DumpIdentity, complete: bool) -> None:
    folder, key = Folder.open(str(dump)), manifest_key(0)
    manifest = read_manifest(folder, key, identity.fingerprint)
    replace_manifest(folder, identity, manifest, fingerprint="0" * 64)
    if not complete:
        folder.remove("index.json")
    assert [*named(dump)] == [key]
    with pytest.raises(IntegrityError, match=r"000000\.manifest\.json"):
        Dump.open(str(dump), allow_unfinished=True)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda e: (*e[:-1], e[-1].model_copy(update={"key": "../../secret"})), "leaves"),
        (lambda e: (*e[:-1], e[-1].model_copy(update={"key": "/etc/passwd"})), "leaves"),
        (lambda e: (*e[:-1], e[-1].model_copy(update={"key": "dump.json"})), "is not in"),
        (lambda e: e[:-1], "does not list vocab.parquet"),
        (lambda e: [x for x in e if "/aux/c/2/" not in x.key], "does not list states.zarr/aux/c/2"),
        (lambda e: [x for x in e if "/final/c/" not in x.key], "does not list states.zarr/final"),
        (
            lambda e: (*e, e[0].model_copy(update={"key": f"{SHARD}/more"})),
            "lists a foreign object, more",
        ),
        (
            lambda e: (e[0], e[1].model_copy(update={"size": e[1].size + 1}), *e[2:]),
            "bytes",
        ),
    ],
)
def test_a_manifest_that_lists_too_much_or_too_little(
    dump: Path,
    identity: DumpIdentity,
    change: Callable[[tuple[ObjectEntry, ...]], tuple[ObjectEntry, ...]],
    problem: str,
) -> None:
    folder, key = Folder.open(str(dump)), manifest_key(0)
    manifest = read_manifest(folder, key, identity.fingerprint)
    replace_manifest(folder, identity, manifest, objects=tuple(change(manifest.objects)))
    problems = named(dump)
    assert key in problems or problem == "bytes"
    assert problem in problems.get(key, "bytes"), problems
    with pytest.raises(IntegrityError):
        use_everything(str(dump))


def test_a_manifest_under_another_name(dump: Path) -> None:
    folder = Folder.open(str(dump))
    folder.write(manifest_key(7), folder.read(manifest_key(0)))
    assert named(dump) == {manifest_key(7): "is the manifest of shard 0"}


def test_a_manifest_that_came_after_the_index(dump: Path, identity: DumpIdentity) -> None:
    folder = Folder.open(str(dump))
    write_shard(folder, identity, 2, [])
    assert "is not listed in index.json" in named(dump)[manifest_key(2)]


def test_an_unfinished_dump(tmp_path: Path, identity: DumpIdentity) -> None:
    folder = write_dump(str(tmp_path), identity, make_shards(identity), complete=False)
    report = verify(str(tmp_path))
    assert (report.damages, report.complete) == ((), False)
    with pytest.raises(UnfinishedError, match=r"unfinished.*index\.json"):
        Dump.open(str(tmp_path))
    unfinished = Dump.open(str(tmp_path), allow_unfinished=True)
    assert unfinished.index is None
    assert [*unfinished.manifests] == [0, 1]
    assert unfinished.vocab().count_V.sum() > 0
    assert unfinished.target_file("config.json").startswith(b"{")
    DAMAGES["middle byte flipped"](folder, AUX)
    (tmp_path / "plan/000001.parquet").unlink()
    folder.write("shards/000005-00000000deadbeef/samples.parquet", b"a lost attempt")
    report = verify(str(tmp_path))
    assert [damage.key for damage in report.damages] == [
        "plan/000001.parquet",
        AUX,
    ]
    assert not report.complete


def test_no_dump_at_all(tmp_path: Path) -> None:
    for look in (verify, Dump.open):
        with pytest.raises(ConfigError, match="there is no dump at"):
            look(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("changes", [{"num_tokens": 10**14}, {"num_rows": 10**14}])
def test_counts_beyond_all_bounds(
    dump: Path, identity: DumpIdentity, changes: dict[str, int]
) -> None:
    folder, key = Folder.open(str(dump)), manifest_key(0)
    manifest = read_manifest(folder, key, identity.fingerprint)
    replace_manifest(folder, identity, manifest, **changes)
    assert "chunks, but lists" in named(dump)[key]
    with pytest.raises(IntegrityError, match="chunks, but lists"):
        use_everything(str(dump))


def test_a_chunk_beyond_all_bounds(dump: Path, identity: DumpIdentity) -> None:
    """Every array in one chunk that the manifest gives more bytes than any memory has."""
    folder = Folder.open(str(dump))
    manifest = read_manifest(folder, manifest_key(0), identity.fingerprint)
    num = 10**14
    sizes = {"aux": 24 * num, "final": 8 * num, "logz": 4 * num}
    sizes |= {"token_logprob": 4 * num, "argmax": 4 * num}
    entries = [e for e in manifest.objects if not e.trailer_bytes]
    for name, size in sizes.items():
        first = next(e for e in manifest.objects if f"/{name}/c/0" in e.key)
        entries.append(first.model_copy(update={"size": size + 4}))
    counts = {"num_tokens": num, "num_rows": num}
    replace_manifest(folder, identity, manifest, objects=tuple(entries), **counts)
    assert "it was written with" in named(dump)[AUX]
    with pytest.raises(IntegrityError):
        Dump.open(str(dump)).shard(0).read_all()


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_records_hold_only_numbers_that_json_has(number: float) -> None:
    with pytest.raises(PydanticError, match="finite number"):
        TextOrigin(kind="generated", temperature=number)
