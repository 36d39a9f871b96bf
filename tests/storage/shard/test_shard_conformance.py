"""One suite for shards, whatever their format: what is written is read, by specpipe and by others.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

import uuid
from itertools import product
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.core.buffer import Buffer, cpu
from zarr.storage import MemoryStore

from specpipe.schemas.records.dump import CHUNK_TRAILER_BYTES, DumpIdentity, ShardManifest
from specpipe.stages.storage.chunks.arrays import ArrayLayout, planned_chunks
from specpipe.stages.storage.chunks.codec import chunk_codec
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.int8_states import widened
from specpipe.stages.storage.shard.listing import listed_arrays, shard_entries
from specpipe.stages.storage.shard.reader import ShardReader
from specpipe.stages.storage.shard.samples import PlannedSample, StoredSample
from specpipe.stages.storage.shard.states import SampleStates
from specpipe.stages.storage.shard.writer import ShardAttempt, ShardWriter
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.upkeep.verify.run import verify
from tests.storage.tiny import (
    Pair,
    concatenated,
    equal_states,
    make_identity,
    make_pair,
    make_shards,
    vocab_of,
    write_dump,
    write_tiny_scales,
)

Format = dict[str, Any]

FORMATS: list[Format] = [
    {"shard_format": shard_format, "logits": logits, "states_dtype": dtype, "compression": codec}
    for shard_format, logits, dtype, codec in product(
        ("zarr", "parquet"), ("final", "topk:5", "full"), ("bfloat16", "int8"), ("none", "zstd")
    )
]

Spans = list[tuple[int, int]]


def name_of(format: Format) -> str:
    return "-".join(format.values())


@st.composite
def lengths(draw: st.DrawFn) -> list[tuple[int, Spans]]:
    """Lengths of samples and up to three supervised spans in each; some have no verifier row."""
    drawn = []
    for _ in range(draw(st.integers(0, 5))):
        num_tokens = draw(st.integers(1, 30))
        ends = sorted(draw(st.sets(st.integers(0, num_tokens), max_size=6)))
        drawn.append((num_tokens, list(zip(ends[::2], ends[1::2], strict=False))))
    return drawn


@pytest.mark.parametrize("format", FORMATS, ids=name_of)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=lengths(),
    chunk_tokens=st.sampled_from([1, 3, 8, 64]),
    num_layers=st.sampled_from([1, 3]),
    slack=st.integers(0, 20),
)
def test_a_shard_of_any_samples(
    format: Format,
    lengths: list[tuple[int, Spans]],
    chunk_tokens: int,
    num_layers: int,
    slack: int,
) -> None:
    identity = make_identity(chunk_tokens, hidden=3, num_layers=num_layers, **format)
    pairs = [make_pair(identity, seed, *length) for seed, length in enumerate(lengths)]
    folder = Folder.open(f"memory://{uuid.uuid4().hex}")
    # The plan counts samples that are refused later, too.
    planned = (sum(s.num_tokens for s, _ in pairs) + slack, sum(s.num_rows for s, _ in pairs))
    manifest = write(folder, identity, pairs, *planned)
    reader = ShardReader(folder, identity, manifest)
    samples, states = reader.samples(), reader.read_all()
    assert len(samples) == len(pairs)
    for stored, (sample, _) in zip(samples, pairs, strict=True):
        assert_is(stored, sample)
    one_by_one = [reader.read_sample(sample) for sample in samples]
    if pairs:
        assert equal_states(states, concatenated(one_by_one))
        assert_were_written(identity, manifest, states, concatenated([s for _, s in pairs]))
    assert reader.vocab().count_V.tolist() == vocab_of(pairs).count_V.tolist()

    arrays = listed_arrays(identity, chunk_codec(identity), manifest, "")
    for name, num_planned in planned_chunks(identity, *planned).items():
        # Fewer rows than one chunk was to have need no padding.
        num_rows = arrays[name].num_rows
        expected = num_rows if 0 < num_rows < num_planned else num_planned
        assert manifest.chunk_rows[name] == expected
    stored_columns = others_read(identity, folder, manifest, arrays)
    assert_layouts(identity, arrays, stored_columns)
    assert_chunks(identity, folder, manifest, arrays, stored_columns)
    # To others, the values are what the reader gives; but for int8, which is steps there.
    columns = states.columns()
    aux_TLH = columns.pop("aux")
    if "aux_scale" not in arrays:
        for at, layer in enumerate(identity.layers):
            assert stored_columns[f"aux_{layer}"].tobytes() == aux_TLH[:, at].tobytes()
    for name, values in columns.items():
        assert stored_columns[name].tobytes() == values.tobytes()
    some = ShardReader(folder, identity, manifest, identity.layers[::-2])
    for at, layer in enumerate(identity.layers[::-2]):
        whole_TH = aux_TLH[:, identity.layers.index(layer)]
        assert some.read_all().aux_TLH[:, at].tobytes() == whole_TH.tobytes()
    folder.remove("shards")


def write(
    folder: Folder, identity: DumpIdentity, pairs: list[Pair], num_tokens: int, num_rows: int
) -> ShardManifest:
    scales = write_tiny_scales(folder, identity)
    writer = ShardWriter(ShardAttempt(folder, 0), identity, num_tokens, num_rows, scales=scales)
    for pair in pairs:
        writer.append(*pair)
    return writer.commit(vocab_of(pairs))


def assert_is(stored: StoredSample, planned: PlannedSample) -> None:
    for name in ("sample_id", "prompt_id", "multiplicity", "source", "metadata", "max_new_tokens"):
        assert getattr(stored, name) == getattr(planned, name)
    assert stored.input_ids.dtype == np.int32
    assert stored.loss_mask.dtype == np.uint8
    assert stored.input_ids.tolist() == planned.input_ids.tolist()
    assert stored.loss_mask.tolist() == planned.loss_mask.tolist()


def assert_were_written(
    identity: DumpIdentity, manifest: ShardManifest, read: SampleStates, written: SampleStates
) -> None:
    """Bit for bit; of int8, within half a step, and with the error that the manifest says."""
    if identity.states_dtype == "bfloat16":
        assert equal_states(read, written)
        assert manifest.aux_error is None
        return
    rest = {name: v for name, v in read.columns().items() if name != "aux"}
    assert all(v.tobytes() == written.columns()[name].tobytes() for name, v in rest.items())
    aux_TLH, read_TLH = (widened(states.aux_TLH).astype(np.float64) for states in (written, read))
    error_TLH = read_TLH - aux_TLH
    error_L = np.sqrt((error_TLH**2).sum(axis=(0, 2)) / (aux_TLH**2).sum(axis=(0, 2)))
    assert manifest.aux_error is not None
    np.testing.assert_allclose(manifest.aux_error, error_L, rtol=1e-4)
    # Every value is rounded to 127 steps of the largest, and then to bfloat16.
    channel_LH = channel_scales(identity)
    in_channels_TLH = np.abs(aux_TLH / channel_LH)
    step_TL1 = in_channels_TLH.max(axis=2, keepdims=True) / 127
    bound_TLH = 0.501 * step_TL1 * channel_LH + np.abs(read_TLH) * 2.0**-8
    assert (np.abs(error_TLH) <= bound_TLH).all()


def channel_scales(identity: DumpIdentity) -> npt.NDArray[np.float64]:
    scales = write_tiny_scales(Folder.open(f"memory://{uuid.uuid4().hex}"), identity)
    assert scales is not None
    return scales.channel_LH.astype(np.float64)


def others_read(
    identity: DumpIdentity,
    folder: Folder,
    manifest: ShardManifest,
    arrays: dict[str, ArrayLayout],
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a shard as zarr-python or pyarrow.dataset give them."""
    if identity.shard_format == "zarr":
        group = open_with_zarr(folder, manifest)
        assert {*group.array_keys()} == arrays.keys()
        return {name: np.asarray(array_of(group, name)[:]) for name in arrays}
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("memory")))
    root = folder.url.removeprefix("memory:/")
    columns = {}
    for name, array in arrays.items():
        if array.num_rows == 0:
            columns[name] = np.empty(array.shape, array.dtype)
            continue
        path = f"{root}/{manifest.folder}/states.parquet/{name}"
        dataset = pyarrow.dataset.dataset(path, format="parquet", filesystem=filesystem)
        field = dataset.schema.field(name)
        assert not field.nullable
        assert field.metadata == {
            b"specpipe_dtype": b"bfloat16" if array.is_bfloat16 else array.dtype.name.encode(),
            b"specpipe_shape": ",".join(map(str, array.row_shape)).encode(),
        }
        column = dataset.to_table().column(name)
        data = (
            b"".join(column.to_pylist())
            if pa.types.is_fixed_size_binary(field.type)
            else column.to_numpy().tobytes()
        )
        columns[name] = np.frombuffer(data, array.dtype).reshape(array.shape)
    return columns


def open_with_zarr(folder: Folder, manifest: ShardManifest) -> zarr.Group:
    start = f"{manifest.folder}/states.zarr/"
    objects: dict[str, Buffer] = {
        key.removeprefix(start): cpu.Buffer.from_bytes(folder.read(key))
        for key in folder.list(manifest.folder)
        if key.startswith(start)
    }
    return zarr.open_group(MemoryStore(objects), mode="r", zarr_format=3)


def array_of(group: zarr.Group, name: str) -> "zarr.Array[Any]":
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def assert_layouts(
    identity: DumpIdentity,
    arrays: dict[str, ArrayLayout],
    stored: dict[str, npt.NDArray[Any]],
) -> None:
    """Names, shapes and dtypes, as docs/dump-format.md has them."""
    layers, hidden = len(identity.layers), identity.target.hidden_size
    is_int8 = identity.states_dtype == "int8"
    rows: dict[str, tuple[tuple[int, ...], str]] = {
        **{f"aux_{at + 1}": ((hidden,), "int8" if is_int8 else "uint16") for at in range(layers)},
        "logz": ((), "float32"),
        "token_logprob": ((), "float32"),
        "argmax": ((), "int32"),
    }
    if is_int8:
        rows["aux_scale"] = ((layers,), "float32")
    rows |= {
        "final": {"final": ((hidden,), "uint16")},
        "full": {"logits": ((identity.target.vocab_size,), "uint16")},
        "topk:5": {"topk_ids": ((5,), "int32"), "topk_logits": ((5,), "uint16")},
    }[identity.logits]
    assert {n: (a.row_shape, a.dtype.name) for n, a in arrays.items()} == rows
    assert {n: (v.shape[1:], v.dtype.name) for n, v in stored.items()} == rows


def assert_chunks(
    identity: DumpIdentity,
    folder: Folder,
    manifest: ShardManifest,
    arrays: dict[str, ArrayLayout],
    stored: dict[str, npt.NDArray[Any]],
) -> None:
    """As many objects as there are chunks, none of more rows or bytes than a chunk may have; raw
    ones are rows, zeros and a crc32c."""
    codec, entries = chunk_codec(identity), shard_entries(manifest)
    most_bytes = identity.chunk_tokens * arrays["aux_1"].row_bytes
    num_chunks = 0
    for name, array in arrays.items():
        assert array.payload_bytes <= max(most_bytes, array.row_bytes)
        # Equal chunks: the last one is not short by more than a row for each.
        assert array.num_chunks * array.chunk_rows < array.num_rows + array.chunk_rows
        for index in range(array.num_chunks):
            num_chunks += 1
            entry = entries[codec.chunk_name(array, index)]
            data = folder.read(entry.key)
            assert len(data) == entry.size
            if not codec.is_raw:
                continue
            rows = stored[name][index * array.chunk_rows :][: array.chunk_rows].tobytes()
            assert data[: len(rows)] == rows
            padding = data[len(rows) : -CHUNK_TRAILER_BYTES]
            assert len(rows) + len(padding) == array.payload_bytes
            assert not any(padding)
    others = {"samples.parquet", "vocab.parquet", *codec.metadata(arrays)}
    assert len(entries) == num_chunks + len(others)


@pytest.mark.parametrize("format", [f for f in FORMATS if f["shard_format"] == "zarr"], ids=name_of)
def test_both_formats_hold_the_same_values(format: Format) -> None:
    folders = [Folder.open(f"memory://{uuid.uuid4().hex}") for _ in range(2)]
    read = []
    for folder, shard_format in zip(folders, ("zarr", "parquet"), strict=True):
        identity = make_identity(**(format | {"shard_format": shard_format}))
        pairs = make_shards(identity)[0]
        manifest = write(folder, identity, pairs, 26, 14)
        reader = ShardReader(folder, identity, manifest)
        read.append((reader.read_all(), [s.crc32c for s in reader.samples()], manifest.aux_error))
    assert equal_states(read[0][0], read[1][0])
    # Of the rows, not of how they are packed.
    assert read[0][1:] == read[1][1:]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_zarr_metadata(compression: str) -> None:
    identity = make_identity(compression=compression, states_dtype="int8", logits="full")
    folder = Folder.open(f"memory://{uuid.uuid4().hex}")
    group = open_with_zarr(folder, write(folder, identity, make_shards(identity)[0], 26, 14))
    codecs = ["BytesCodec", *(["BloscCodec"] if compression == "zstd" else []), "Crc32cCodec"]
    dimensions = {
        "aux_1": ("token", "hidden"),
        "aux_2": ("token", "hidden"),
        "aux_3": ("token", "hidden"),
        "aux_scale": ("token", "layer"),
        "logits": ("row", "token_id"),
        "logz": ("row",),
        "token_logprob": ("row",),
        "argmax": ("row",),
    }
    assert {*group.array_keys()} == dimensions.keys()
    for name, dims in dimensions.items():
        array = array_of(group, name)
        assert array.metadata.dimension_names == dims  # type: ignore[union-attr]
        assert [type(codec).__name__ for codec in array.metadata.codecs] == codecs  # type: ignore[union-attr]
        expected = {"specpipe_dtype": "bfloat16"} if name == "logits" else {}
        assert array.attrs.asdict() == expected


@pytest.mark.parametrize(
    "format", [{}, {"shard_format": "parquet", "compression": "zstd", "logits": "topk:5"}]
)
def test_a_dump_on_every_store(format: Format, root: str) -> None:
    assert_dump_is_read(root, format)


@pytest.mark.parametrize(
    "format",
    [
        {"states_dtype": "int8", "compression": "zstd", "logits": "full"},
        {"shard_format": "parquet"},
    ],
)
def test_a_dump_in_an_object_store(format: Format, s3_root: str) -> None:
    assert_dump_is_read(s3_root, format)


def assert_dump_is_read(root: str, format: Format) -> None:
    identity = make_identity(**format)
    shards = make_shards(identity)
    write_dump(root, identity, shards)
    dump = Dump.open(root)
    dump.check_objects()
    dump.check_metadata()
    assert dump.identity == identity
    assert [*dump.manifests] == [0, 1]
    for shard_id, pairs in enumerate(shards):
        reader = dump.shard(shard_id)
        for stored, (sample, _) in zip(reader.samples(), pairs, strict=True):
            assert_is(stored, sample)
        states = [reader.read_sample(stored) for stored in reader.samples()]
        manifest, written = dump.manifests[shard_id], concatenated([s for _, s in pairs])
        assert_were_written(identity, manifest, concatenated(states), written)
        assert equal_states(reader.read_all(), concatenated(states))
    total = vocab_of([pair for pairs in shards for pair in pairs])
    assert dump.vocab().count_V.tolist() == total.count_V.tolist()
    assert dump.vocab().mass_V.tolist() == total.mass_V.tolist()
    assert dump.target_file("head.safetensors") == bytes(range(200))
    assert dump.num_bytes == sum(dump.folder.sizes().values()) - len(dump.folder.read("index.json"))

    seen: list[tuple[int, int]] = []
    report = verify(root, progress=lambda done, total: seen.append((done, total)))
    assert report.damages == ()
    assert report.complete
    assert report.num_objects == len(dump.entries)
    assert report.num_bytes == dump.num_bytes
    assert seen[-1] == (dump.num_bytes, dump.num_bytes)
