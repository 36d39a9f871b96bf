"""Write one attempt at a shard: stream its chunks out, and commit it with its manifest.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from specpipe.schemas.dump import (
    CHUNK_TRAILER_BYTES,
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    ObjectEntry,
    ShardManifest,
    manifest_key,
    shard_folder,
)
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.arrays import (
    ArrayLayout,
    planned_chunks,
    shard_arrays,
    zarr_metadata,
)
from specpipe.stages.storage.crc import chunk_entry, concat_crc32c, crc32c, object_entry
from specpipe.stages.storage.folder import Folder
from specpipe.stages.storage.records import read_manifest
from specpipe.stages.storage.samples import PlannedSample, StoredSample, samples_to_parquet
from specpipe.stages.storage.states import SampleStates
from specpipe.stages.storage.vocab import VocabStatistics

Buffer = npt.NDArray[np.uint8]


class ShardWriter:
    """One attempt at shard `shard_id`, in a folder of its own that nobody else writes to.

    Memory: the open chunk of each array and one more chunk that is on its way to the store.
    """

    def __init__(
        self,
        folder: Folder,
        identity: DumpIdentity,
        shard_id: int,
        planned_tokens: int,
        planned_rows: int,
        *,
        attempt: str | None = None,
    ) -> None:
        """`folder` is the dump's root; `attempt` is random unless given (for fixed test data)."""
        self._folder = folder
        self._identity = identity
        self._shard_id = shard_id
        self._attempt = attempt or uuid.uuid4().hex[:16]
        self._chunks = planned_chunks(identity, planned_tokens, planned_rows)
        self._outbox = _Outbox(folder, shard_folder(shard_id, self._attempt))
        self._arrays = {
            name: _ArrayWriter(layout, self._outbox)
            for name, layout in shard_arrays(identity, 0, 0, *self._chunks).items()
        }
        self._samples: list[StoredSample] = []
        self._num_tokens = 0
        self._num_rows = 0

    def append(self, sample: PlannedSample, states: SampleStates) -> None:
        """Add a sample; full chunks go out. Raises IntegrityError on shapes that do not fit."""
        columns: dict[str, tuple[npt.NDArray[Any], int]] = {
            "aux": (states.aux_TLH, sample.num_tokens),
            "final": (states.final_SH, sample.num_rows),
            "logz": (states.logz_S, sample.num_rows),
            "token_logprob": (states.token_logprob_S, sample.num_rows),
            "argmax": (states.argmax_S, sample.num_rows),
        }
        for name, (values, num_rows) in columns.items():
            layout = self._arrays[name].layout
            expected = (num_rows, *layout.row_shape)
            if values.shape != expected or values.dtype != layout.dtype:
                raise IntegrityError(
                    f"sample {sample.sample_id} ({sample.source}): {name} is {values.dtype} "
                    f"{list(values.shape)}, expected {layout.dtype} {list(expected)}"
                )
        crcs = {name: self._arrays[name].append(values) for name, (values, _) in columns.items()}
        self._samples.append(
            StoredSample(
                sample_id=sample.sample_id,
                prompt_id=sample.prompt_id,
                multiplicity=sample.multiplicity,
                source=sample.source,
                input_ids=sample.input_ids,
                loss_mask=sample.loss_mask,
                metadata=sample.metadata,
                offset=self._num_tokens,
                row_offset=self._num_rows,
                aux_crc32c=crcs["aux"],
                final_crc32c=crcs["final"],
            )
        )
        self._num_tokens += sample.num_tokens
        self._num_rows += sample.num_rows

    def commit(self, vocab: VocabStatistics) -> ShardManifest:
        """Write what is left, then the manifest; returns the manifest that counts.

        It is another attempt's if that one was committed first; ours then stays unlisted. Raises
        IntegrityError if that manifest is damaged or belongs to another dump.
        """
        for array in self._arrays.values():
            array.close()
        layouts = {
            name: replace(array.layout, num_rows=array.num_rows)
            for name, array in self._arrays.items()
        }
        for name, data in zarr_metadata(layouts).items():
            self._outbox.put(name, data)
        self._outbox.put(SAMPLES_FILE, samples_to_parquet(self._samples))
        self._outbox.put(VOCAB_FILE, vocab.to_parquet())
        manifest = ShardManifest(
            shard_id=self._shard_id,
            attempt=self._attempt,
            fingerprint=self._identity.fingerprint,
            num_samples=len(self._samples),
            num_tokens=self._num_tokens,
            num_rows=self._num_rows,
            token_chunk=self._chunks[0],
            row_chunk=self._chunks[1],
            objects=tuple(sorted(self._outbox.close(), key=lambda entry: entry.key)),
        )
        key = manifest_key(self._shard_id)
        if self._folder.create(key, manifest.to_json()):
            return manifest
        return read_manifest(self._folder, key, self._identity.fingerprint)


class _Outbox:
    """Objects on their way to the store: at most one chunk waits, so that memory is bounded."""

    def __init__(self, folder: Folder, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._entries: list[ObjectEntry] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._pending: Future[None] | None = None

    def put(self, name: str, data: bytes) -> None:
        key = f"{self._prefix}/{name}"
        self._folder.write(key, data)
        self._entries.append(object_entry(key, data))

    def put_chunk(
        self, name: str, chunk: Buffer, payload_crc: int, done: Callable[[Buffer], None]
    ) -> None:
        """Send a chunk while the caller goes on; `done` takes its buffer back."""
        self.wait()
        key = f"{self._prefix}/{name}"

        def send() -> None:
            self._folder.write(key, chunk.data)
            done(chunk)

        self._entries.append(chunk_entry(key, len(chunk), payload_crc))
        self._pending = self._thread.submit(send)

    def wait(self) -> None:
        """Until nothing is on its way; raises what went wrong there."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> list[ObjectEntry]:
        self.wait()
        self._thread.shutdown()
        return self._entries


class _ArrayWriter:
    """The open chunk of one array."""

    def __init__(self, layout: ArrayLayout, outbox: _Outbox) -> None:
        self.layout = layout
        self.num_rows = 0
        self._outbox = outbox
        self._free: list[Buffer] = []
        self._chunk: Buffer | None = None
        self._crc = 0

    def append(self, values: npt.NDArray[Any]) -> int:
        """Add rows; returns their crc32c."""
        layout = self.layout
        rows = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        crc, start = 0, self.num_rows
        for index, first, stop in layout.chunks_of(start, start + len(values)):
            if self._chunk is None:
                self._chunk = (
                    self._free.pop() if self._free else np.empty(layout.chunk_bytes, np.uint8)
                )
            piece = rows[(first - start) * layout.row_bytes : (stop - start) * layout.row_bytes]
            at = (first - index * layout.chunk_rows) * layout.row_bytes
            self._chunk[at : at + len(piece)] = piece
            piece_crc = crc32c(piece)
            crc = concat_crc32c(crc, piece_crc, len(piece))
            self._crc = concat_crc32c(self._crc, piece_crc, len(piece))
            self.num_rows = stop
            if stop == (index + 1) * layout.chunk_rows:
                self._send(self._chunk)
        return crc

    def close(self) -> None:
        """Send the last chunk, padded with zeros to a full one."""
        if self._chunk is not None:
            used = self.num_rows % self.layout.chunk_rows * self.layout.row_bytes
            padding = self._chunk[used:-CHUNK_TRAILER_BYTES]
            padding[:] = 0
            self._crc = crc32c(padding, self._crc)
            self._send(self._chunk)

    def _send(self, chunk: Buffer) -> None:
        chunk[-CHUNK_TRAILER_BYTES:] = np.array([self._crc], "<u4").view(np.uint8)
        index = (self.num_rows - 1) // self.layout.chunk_rows
        self._outbox.put_chunk(self.layout.chunk_name(index), chunk, self._crc, self._free.append)
        self._chunk, self._crc = None, 0
