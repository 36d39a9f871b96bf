"""The rows of plan/SSSSSS.parquet and of a shard's samples.parquet.

Legend: T tokens, V vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import (
    MOST_SHARD_SAMPLES,
    MOST_SHARD_TOKENS,
    DumpIdentity,
    ShardManifest,
)
from specpipe.schemas.records.sample import Ids, Mask, Sample, Source, verifier_rows
from specpipe.stages.storage.tables import encode_table
from specpipe.stages.untrusted.json_text import parse_object
from specpipe.stages.untrusted.parquet import TableBounds, read_table

Counts = npt.NDArray[np.int64]

_PLANNED = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prompt_id", pa.string()),
        ("multiplicity", pa.int64()),
        ("num_tokens", pa.int64()),
        ("source_file", pa.string()),
        ("source_line", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.uint8())),
        ("metadata", pa.string()),
        ("max_new_tokens", pa.int64()),
    ]
)


def stored_schema(arrays: Sequence[str]) -> Any:
    """Columns of a shard's samples.parquet, `arrays` being those of the shard."""
    places = [(name, pa.int64()) for name in ("offset", "row_offset", "num_rows")]
    crcs = [(_crc_column(array), pa.uint32()) for array in arrays]
    return pa.schema([*_PLANNED, *places, *crcs])


@dataclass(frozen=True, slots=True, eq=False)
class PlannedSample:
    """A sample of a shard's plan: `input_ids` is int32 [T], `loss_mask` uint8 [T]."""

    sample_id: str
    prompt_id: str
    multiplicity: int
    source: Source
    input_ids: Ids
    loss_mask: Mask
    metadata: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 0
    """Most tokens that the target is to add to a planned prompt; 0 for text that is given."""

    @classmethod
    def of(cls, sample: Sample) -> "PlannedSample":
        return cls(sample.sample_id, sample.prompt_id, **_values(sample, Sample))

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def size(self) -> int:
        """Tokens that it has, or has at most once its text is generated."""
        return self.num_tokens + self.max_new_tokens

    @property
    def num_rows(self) -> int:
        """Verifier rows: positions whose next token is supervised."""
        return len(verifier_rows(self.loss_mask))

    @property
    def most_rows(self) -> int:
        """Verifier rows that it has, or has at most once its text is generated."""
        return self.num_rows + self.max_new_tokens


@dataclass(frozen=True, slots=True, eq=False)
class StoredSample(PlannedSample):
    """A sample of a committed shard, with where its states lie and their crc."""

    offset: int = 0
    """First token on the shard's token axis."""
    row_offset: int = 0
    """First verifier row on the shard's verifier-row axis."""
    crc32c: dict[str, int] = field(default_factory=dict)
    """Of its rows of each array, as they are stored but for compression."""

    @classmethod
    def at(
        cls, sample: PlannedSample, offset: int, row_offset: int, crc32c: dict[str, int]
    ) -> "StoredSample":
        places: dict[str, Any] = {"offset": offset, "row_offset": row_offset, "crc32c": crc32c}
        return cls(**_values(sample, PlannedSample), **places)


def _values(sample: Sample | PlannedSample, kind: type[Sample | PlannedSample]) -> dict[str, Any]:
    """The fields that a sample has as one of this kind."""
    return {field.name: getattr(sample, field.name) for field in fields(kind)}


def plan_to_parquet(samples: Sequence[PlannedSample]) -> bytes:
    return _to_parquet([_planned_row(sample) for sample in samples], _PLANNED)


def plan_from_parquet(data: bytes, where: str) -> list[PlannedSample]:
    """Raises IntegrityError, naming `where`, if the data is no plan."""
    return [_planned(row) for row in _rows(data, _PLANNED, _bounds(None), where)]


def samples_to_parquet(samples: Sequence[StoredSample], arrays: Sequence[str]) -> bytes:
    rows = [
        {
            **_planned_row(sample),
            "offset": sample.offset,
            "row_offset": sample.row_offset,
            "num_rows": sample.num_rows,
            **{_crc_column(array): sample.crc32c[array] for array in arrays},
        }
        for sample in samples
    ]
    return _to_parquet(rows, stored_schema(arrays))


def samples_from_parquet(
    data: bytes, arrays: Sequence[str], where: str, manifest: ShardManifest | None = None
) -> list[StoredSample]:
    """Raises IntegrityError, naming `where`, if the data is no table of stored samples.

    The samples tile both axes in order, and each one's number of verifier rows is that of its mask.
    No more is decoded than the manifest counts, if there is one, or than a shard can have.
    """
    samples: list[StoredSample] = []
    offset = row_offset = 0
    for row in _rows(data, stored_schema(arrays), _bounds(manifest), where):
        if (row["offset"], row["row_offset"]) != (offset, row_offset):
            raise IntegrityError(
                f"{where}: sample {row['sample_id']} does not begin where the one before it ends"
            )
        crcs = {array: row[_crc_column(array)] for array in arrays}
        sample = StoredSample.at(_planned(row), offset, row_offset, crcs)
        if row["num_rows"] != sample.num_rows:
            raise IntegrityError(
                f"{where}: sample {sample.sample_id} has {row['num_rows']} verifier rows but its "
                f"loss mask has {sample.num_rows}"
            )
        samples.append(sample)
        offset += sample.num_tokens
        row_offset += sample.num_rows
    return samples


def check_samples(
    samples: Sequence[StoredSample], identity: DumpIdentity, manifest: ShardManifest, where: str
) -> None:
    """Raises IntegrityError unless the samples are those that the manifest counts.

    Given text names its samples by a hash of token ids and mask, so a change of either shows.
    """
    counts = (len(samples), sum(s.num_tokens for s in samples), sum(s.num_rows for s in samples))
    if counts != (manifest.num_samples, manifest.num_tokens, manifest.num_rows):
        raise IntegrityError(
            f"{where} has {counts[0]} samples, {counts[1]} tokens and {counts[2]} verifier rows; "
            f"its manifest counts {manifest.num_samples}, {manifest.num_tokens} and "
            f"{manifest.num_rows}"
        )
    vocab_size = identity.target.vocab_size
    for sample in samples:
        ids = sample.input_ids
        if len(ids) and not (ids.min() >= 0 and ids.max() < vocab_size):
            raise IntegrityError(
                f"{where}: sample {sample.sample_id} ({sample.source}) holds a token id outside "
                f"the vocabulary of {vocab_size}"
            )
        if not identity.text.is_planned:
            check_identity(sample, where)


def check_plan(
    samples: Sequence[StoredSample], planned: Sequence[PlannedSample], where: str
) -> None:
    """Raises IntegrityError unless the samples are planned ones, in the plan's order.

    Planned samples that the dump refused are absent. Where the plan holds prompts, the samples
    begin with them.
    """
    rest = iter(planned)
    for sample in samples:
        plan = next((plan for plan in rest if plan.sample_id == sample.sample_id), None)
        if plan is None:
            raise IntegrityError(
                f"{where}: sample {sample.sample_id} is not in the shard's plan at this place"
            )
        if not (
            np.array_equal(plan.input_ids, sample.input_ids[: plan.num_tokens])
            and np.array_equal(plan.loss_mask, sample.loss_mask[: plan.num_tokens])
            and sample.num_tokens <= plan.size
            and (plan.prompt_id, plan.multiplicity) == (sample.prompt_id, sample.multiplicity)
        ):
            raise IntegrityError(
                f"{where}: sample {sample.sample_id} does not have the token ids, the loss mask, "
                "the length or the multiplicity of the shard's plan"
            )


def supervised_counts(samples: Sequence[PlannedSample], vocab_size: int) -> Counts:
    """int64 [V]: verifier rows whose next token each is, weighted by multiplicity."""
    count_V = np.zeros(vocab_size, np.int64)
    for sample in samples:
        following = sample.input_ids[1:][sample.loss_mask[1:] == 1]
        np.add.at(count_V, following, sample.multiplicity)
    return count_V


def check_identity(sample: PlannedSample, where: str) -> None:
    """Raises IntegrityError unless the sample's ids are the hashes of its tokens and mask."""
    text = Sample(sample.input_ids, sample.loss_mask, sample.source)
    if (sample.sample_id, sample.prompt_id) != (text.sample_id, text.prompt_id):
        raise IntegrityError(
            f"{where}: sample {sample.sample_id} ({sample.source}) does not hold the token ids "
            "and the loss mask that its sample_id and prompt_id are hashes of"
        )


def _crc_column(array: str) -> str:
    return f"{array}_crc32c"


def _planned_row(sample: PlannedSample) -> dict[str, Any]:
    return _values(sample, PlannedSample) | {
        "num_tokens": sample.num_tokens,
        "source_file": sample.source.file,
        "source_line": sample.source.line,
        "metadata": json.dumps(sample.metadata, sort_keys=True, ensure_ascii=False),
    }


def _to_parquet(rows: list[dict[str, Any]], schema: Any) -> bytes:
    columns = [pa.array([row[f.name] for row in rows], type=f.type) for f in schema]
    return encode_table(pa.table(columns, schema=schema), "zstd")


def _bounds(manifest: ShardManifest | None) -> TableBounds:
    samples, tokens = MOST_SHARD_SAMPLES, MOST_SHARD_TOKENS
    if manifest is not None:
        samples, tokens = min(samples, manifest.num_samples), min(tokens, manifest.num_tokens)
    return TableBounds(rows=samples, values=tokens + samples)


def _rows(data: bytes, schema: Any, bounds: TableBounds, where: str) -> list[dict[str, Any]]:
    """The table's rows, with `input_ids` and `loss_mask` as arrays."""
    table = read_table(data, schema, bounds, where)
    arrays = {"input_ids": np.int32, "loss_mask": np.uint8}
    columns = {
        name: [np.array(value.values, dtype=arrays[name]) for value in table.column(name)]
        if name in arrays
        else table.column(name).to_pylist()
        for name in schema.names
    }
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    for row in rows:
        _check(row, where)
    return rows


def _check(row: dict[str, Any], where: str) -> None:
    mask, num_tokens = row["loss_mask"], row["num_tokens"]
    sample = f"{where}: sample {row['sample_id']}"
    if not len(row["input_ids"]) == len(mask) == num_tokens:
        raise IntegrityError(
            f"{sample} has {len(row['input_ids'])} token ids, {len(mask)} mask entries and a "
            f"length of {num_tokens}"
        )
    if len(mask) and mask.max() > 1:
        raise IntegrityError(f"{sample} has a loss mask with something other than 0 and 1")
    if row["multiplicity"] < 1:
        raise IntegrityError(f"{sample} has the multiplicity {row['multiplicity']}")
    row["metadata"] = parse_object(row["metadata"], f"{sample}: its metadata")


def _planned(row: dict[str, Any]) -> PlannedSample:
    given = {field.name: row[field.name] for field in fields(PlannedSample) if field.name in row}
    return PlannedSample(source=Source(row["source_file"], row["source_line"]), **given)
