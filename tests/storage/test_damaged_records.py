"""Records and tables that disagree with each other, with every crc to match."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError as PydanticError

from specpipe.schemas.errors import ConfigError, IntegrityError, UnfinishedError
from specpipe.schemas.records.dump import DumpIdentity, ObjectEntry, TextOrigin, manifest_key
from specpipe.stages.storage.chunks.arrays import array_names
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.records import read_manifest
from specpipe.stages.storage.shard.samples import (
    StoredSample,
    samples_from_parquet,
    samples_to_parquet,
)
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.upkeep.verify.run import verify
from tests.storage.damages import (
    AUX,
    DAMAGES,
    SHARD,
    named,
)
from tests.storage.golden import GOLDEN, golden_identity
from tests.storage.tiny import (
    make_shards,
    replace_manifest,
    replace_object,
    use_everything,
    write_dump,
    write_index,
    write_shard,
)


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
    folder, key = Folder.open(str(dump)), f"{SHARD}/states.zarr/aux_1/zarr.json"
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
        (
            lambda e: [x for x in e if "/aux_1/c/2/" not in x.key],
            "does not list states.zarr/aux_1/c/2",
        ),
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
    sizes = {
        "aux_1": 8 * num,
        "aux_2": 8 * num,
        "aux_3": 8 * num,
        "final": 8 * num,
        "logz": 4 * num,
    }
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


def test_a_token_that_the_target_did_not_write(tmp_path: Path) -> None:
    """Its samples are named by no hash of their text."""
    root = shutil.copytree(GOLDEN / "dump-v1-topk-generated", tmp_path / "dump")
    identity, folder = golden_identity("dump-v1-topk-generated"), Folder.open(str(root))
    key, names = f"{SHARD}/samples.parquet", array_names(identity)
    first, second = samples_from_parquet(folder.read(key), names, key)
    for change, place in ((_last_token, f"{SHARD}/vocab.parquet"), (_token, key)):
        altered = samples_to_parquet([change(first), second], names)
        replace_object(folder, identity, key, altered)
        problems = named(root)
        assert [*problems] == [place]
    assert "shard's plan" in problems[key]


def _last_token(sample: StoredSample) -> StoredSample:
    ids_T = sample.input_ids.copy()
    ids_T[-1] ^= 1
    return replace(sample, input_ids=ids_T)
