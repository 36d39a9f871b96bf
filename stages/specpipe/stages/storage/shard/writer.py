"""Write one attempt at a shard: stream its chunks out, and commit it with its manifest.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.records.dump import (
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    GenerationCounts,
    ShardManifest,
    manifest_key,
    shard_folder,
)
from specpipe.stages.storage.chunks.arrays import (
    AUX_SCALE,
    ArrayLayout,
    aux_array,
    planned_chunks,
    shard_arrays,
)
from specpipe.stages.storage.chunks.codec import Buffer, buffer_bytes, chunk_codec
from specpipe.stages.storage.records import read_manifest
from specpipe.stages.storage.shard.int8_states import Quantiser
from specpipe.stages.storage.shard.outbox import Outbox
from specpipe.stages.storage.shard.samples import PlannedSample, StoredSample, samples_to_parquet
from specpipe.stages.storage.shard.scales import AuxScales
from specpipe.stages.storage.shard.states import SampleStates
from specpipe.stages.storage.store.crc import crc32c, extend_crc32c
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.vocab import VocabStatistics

WRITE_BUFFER_BYTES = 256 * 2**20
_BLOCK_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class ShardAttempt:
    """One attempt at a shard, in a folder of its own that nobody else writes to."""

    dump: Folder
    """The dump's root."""
    shard_id: int
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:16])

    @property
    def prefix(self) -> str:
        """Of the keys of its objects."""
        return shard_folder(self.shard_id, self.name)


class ShardWriter:
    """Writes one attempt at a shard.

    Memory: `write_buffer_bytes` for chunks that are being filled or are on their way to the store,
    or one chunk of each array where that is more. `append` waits while all of it is in use.
    """

    def __init__(
        self,
        attempt: ShardAttempt,
        identity: DumpIdentity,
        planned_tokens: int,
        planned_rows: int,
        *,
        scales: AuxScales | None = None,
        write_buffer_bytes: int = WRITE_BUFFER_BYTES,
    ) -> None:
        """`planned_tokens` and `planned_rows` are those that are to come, or the most that may.

        `scales` are the dump's, for int8 states; raises ConfigError without them.
        """
        self._attempt = attempt
        self._identity = identity
        self._scales = scales if identity.states_dtype == "int8" else None
        self._quantiser = Quantiser(self._scales.channel_LH) if self._scales else None
        if identity.states_dtype == "int8" and not self._scales:
            raise ConfigError("int8 states need the scales of the dump's channels")
        self._codec = chunk_codec(identity)
        chunk_rows = planned_chunks(identity, planned_tokens, planned_rows)
        self._outbox = Outbox(attempt.dump, attempt.prefix, self._codec, write_buffer_bytes)
        self._arrays = {
            name: _ArrayWriter(layout, self._outbox)
            for name, layout in shard_arrays(identity, 0, 0, chunk_rows).items()
        }
        self._samples: list[StoredSample] = []
        self._num_tokens = 0
        self._num_rows = 0

    def append(self, sample: PlannedSample, states: SampleStates) -> None:
        """Add a sample; full chunks go out.

        Raises IntegrityError on states that do not fit, StoreError if an earlier chunk did not
        get through.
        """
        columns = states.columns()
        self._check(sample, columns)
        aux_TLH: npt.NDArray[Any] = columns.pop("aux")
        if self._quantiser:
            aux_TLH, columns[AUX_SCALE] = self._quantiser.quantise(states.aux_TLH)
        for at, layer in enumerate(self._identity.layers):
            columns[aux_array(layer)] = aux_TLH[:, at]
        crcs = {name: array.append(columns[name]) for name, array in self._arrays.items()}
        self._samples.append(StoredSample.at(sample, self._num_tokens, self._num_rows, crcs))
        self._num_tokens += sample.num_tokens
        self._num_rows += sample.num_rows

    def _check(self, sample: PlannedSample, columns: dict[str, npt.NDArray[Any]]) -> None:
        """That the states have the dump's arrays, in their shapes and dtypes."""
        where = f"sample {sample.sample_id} ({sample.source})"
        layers, hidden = self._identity.layers, self._identity.target.hidden_size
        shape: tuple[int, ...] = (sample.num_tokens, len(layers), hidden)
        all_expected = {"aux": (shape, np.dtype(np.uint16))}
        for name, array in self._arrays.items():
            if array.layout.dimensions[0] == "row":
                shape = (sample.num_rows, *array.layout.row_shape)
                all_expected[name] = shape, array.layout.dtype
        if wrong := sorted(all_expected.keys() ^ columns.keys()):
            raise IntegrityError(
                f"{where}: {wrong[0]} is {'missing' if wrong[0] in all_expected else 'not stored'} "
                f"in logits mode {self._identity.logits}"
            )
        for name, (expected, dtype) in all_expected.items():
            values = columns[name]
            if values.shape != expected or values.dtype != dtype:
                raise IntegrityError(
                    f"{where}: {name} is {values.dtype} {list(values.shape)}, expected {dtype} "
                    f"{list(expected)}"
                )

    def commit(
        self, vocab: VocabStatistics, generation: GenerationCounts | None = None
    ) -> ShardManifest:
        """Write what is left, then the manifest; returns the manifest that counts.

        `generation` says what became of text that the target wrote.

        It is another attempt's if that one was committed first; ours then stays unlisted. Raises
        StoreError if anything did not get through, IntegrityError if the manifest that is there is
        damaged or belongs to another dump.
        """
        for array in self._arrays.values():
            array.finish()
        layouts = {
            name: replace(array.layout, num_rows=array.num_rows)
            for name, array in self._arrays.items()
        }
        for name, data in self._codec.metadata(layouts).items():
            self._outbox.put(name, data)
        self._outbox.put(SAMPLES_FILE, samples_to_parquet(self._samples, [*layouts]))
        self._outbox.put(VOCAB_FILE, vocab.to_parquet())
        manifest = ShardManifest(
            shard_id=self._attempt.shard_id,
            attempt=self._attempt.name,
            fingerprint=self._identity.fingerprint,
            num_samples=len(self._samples),
            num_tokens=self._num_tokens,
            num_rows=self._num_rows,
            chunk_rows={name: layout.chunk_rows for name, layout in layouts.items()},
            aux_scales_crc32c=self._scales.crc32c if self._scales else None,
            aux_error=self._quantiser.relative_error() if self._quantiser else None,
            generation=generation,
            objects=tuple(self._outbox.close()),
        )
        key = manifest_key(self._attempt.shard_id)
        if self._attempt.dump.create(key, manifest.to_json()):
            return manifest
        return read_manifest(self._attempt.dump, key, self._identity.fingerprint)


class _ArrayWriter:
    """The open chunk of one array."""

    def __init__(self, layout: ArrayLayout, outbox: Outbox) -> None:
        self.layout = layout
        self.num_rows = 0
        self._outbox = outbox
        self._chunk: Buffer | None = None
        self._crc = 0

    def append(self, values: npt.NDArray[Any]) -> int:
        """Add rows; returns their crc32c."""
        layout = self.layout
        crc, start = 0, self.num_rows
        for index, first, stop in layout.chunks_of(start, start + len(values)):
            if self._chunk is None:
                self._chunk = self._outbox.buffer(layout)
            at = (first - index * layout.chunk_rows) * layout.row_bytes
            piece = self._chunk[at : at + (stop - first) * layout.row_bytes]
            piece_crc = _copy(values[first - start : stop - start], piece, layout)
            crc = extend_crc32c(crc, piece, piece_crc)
            self._crc = extend_crc32c(self._crc, piece, piece_crc)
            self.num_rows = stop
            if stop == (index + 1) * layout.chunk_rows:
                self.close()
        return crc

    def finish(self) -> None:
        """Send what there is of the last chunk.

        Where it is the only one, chunks need no more rows than it has: fewer tokens may have come
        than were planned, and Zarr fills chunks up with zeros.
        """
        if self._chunk is not None and self.num_rows < self.layout.chunk_rows:
            self.layout = replace(self.layout, chunk_rows=self.num_rows)
            self._chunk = self._chunk[: buffer_bytes(self.layout)]
        self.close()

    def close(self) -> None:
        """Send what there is of the open chunk."""
        if self._chunk is None:
            return
        index = (self.num_rows - 1) // self.layout.chunk_rows
        num_bytes = (self.num_rows - index * self.layout.chunk_rows) * self.layout.row_bytes
        chunk, crc = self._chunk, self._crc
        self._chunk, self._crc = None, 0
        self._outbox.put_chunk(self.layout, index, chunk, num_bytes, crc)


def _copy(rows: npt.NDArray[Any], target: Buffer, layout: ArrayLayout) -> int:
    """Copy rows; returns their crc32c, computed while each block of them is in the cache."""
    crc = 0
    target_rows = target.view(layout.dtype).reshape(-1, *layout.row_shape)
    step = max(1, _BLOCK_BYTES // layout.row_bytes)
    for start in range(0, len(rows), step):
        block = target_rows[start : start + step]
        block[...] = rows[start : start + step]
        crc = crc32c(target[start * layout.row_bytes :][: block.nbytes], crc)
    return crc
