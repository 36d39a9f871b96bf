"""Read a committed shard: nothing leaves here unchecked.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from specpipe.schemas.dump import (
    AUX_SCALES_FILE,
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    ShardManifest,
)
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.array_check import ArrayCheck, sample_span, sample_spans
from specpipe.stages.storage.arrays import ArrayLayout
from specpipe.stages.storage.chunk_codec import Buffer, chunk_codec
from specpipe.stages.storage.chunk_read import ReadChunk, read_chunk
from specpipe.stages.storage.crc import concat_crc32c
from specpipe.stages.storage.folder import HOW_TO_REPAIR, Folder
from specpipe.stages.storage.int8_states import Quantiser
from specpipe.stages.storage.listing import listed_arrays, shard_entries
from specpipe.stages.storage.objects import read_object
from specpipe.stages.storage.row_scan import RowScan
from specpipe.stages.storage.samples import StoredSample, check_samples, samples_from_parquet
from specpipe.stages.storage.scales import read_scales
from specpipe.stages.storage.states import SampleStates
from specpipe.stages.storage.vocab import VocabStatistics

_PARALLEL_READS = 4

Columns = dict[str, npt.NDArray[Any]]


class ShardReader:
    """One committed shard, `folder` being the dump's root.

    The manifest locates everything, so no object is opened to find another. Samples and the
    arrays of one number a row are kept once read.
    """

    def __init__(self, folder: Folder, identity: DumpIdentity, manifest: ShardManifest) -> None:
        """Raises IntegrityError if the manifest is another dump's, or lists too much or little."""
        self._folder = folder
        self._identity = identity
        self._manifest = manifest
        self._where = folder.where(manifest.folder)
        if manifest.fingerprint != identity.fingerprint:
            raise IntegrityError(f"the manifest of {self._where} belongs to another dump")
        self._codec = chunk_codec(identity)
        self._entries = shard_entries(manifest)
        self._arrays = listed_arrays(identity, self._codec, manifest, self._where)
        self._wide = [array for array in self._arrays.values() if array.row_shape]

    def samples(self) -> list[StoredSample]:
        """All samples of the shard, in the order of its axes."""
        return self._samples

    def vocab(self) -> VocabStatistics:
        return VocabStatistics.from_parquet(
            self._read(VOCAB_FILE), self._identity.target.vocab_size, f"{self._where}/{VOCAB_FILE}"
        )

    def read_all(self) -> SampleStates:
        """The states of all samples, concatenated; every chunk and every sample checked."""
        return self._states(self._read_arrays(self._wide) | self._scalars)

    def read_sample(self, sample: StoredSample) -> SampleStates:
        """The states of one of `samples()`, checked.

        Of raw chunks only the sample's own rows are read, of others the whole of each chunk that
        holds some of them; but for the arrays of one number a row, which are read once.
        """
        columns = {array.name: self._read_rows(array, sample) for array in self._wide}
        rows = slice(sample.row_offset, sample.row_offset + sample.num_rows)
        return self._states(columns | {name: row[rows] for name, row in self._scalars.items()})

    @cached_property
    def _samples(self) -> list[StoredSample]:
        where = f"{self._where}/{SAMPLES_FILE}"
        samples = samples_from_parquet(self._read(SAMPLES_FILE), [*self._arrays], where)
        check_samples(samples, self._identity, self._manifest, where)
        return samples

    @cached_property
    def _scalars(self) -> Columns:
        return self._read_arrays([a for a in self._arrays.values() if not a.row_shape])

    @cached_property
    def _quantiser(self) -> Quantiser:
        scales = read_scales(self._folder, self._identity)
        if scales.crc32c != self._manifest.aux_scales_crc32c:
            raise IntegrityError(
                f"{self._folder.where(AUX_SCALES_FILE)} is not the one that {self._where} was "
                f"written with; {HOW_TO_REPAIR}"
            )
        return Quantiser(scales.channel_LH)

    def _states(self, columns: Columns) -> SampleStates:
        if self._identity.states_dtype == "int8":
            scale_TL = columns.pop("aux_scale")
            columns["aux"] = self._quantiser.dequantise(columns["aux"], scale_TL)
        return SampleStates.of_columns(columns)

    def _read(self, name: str) -> bytes:
        return read_object(self._folder, self._entries[name])

    def _read_arrays(self, arrays: list[ArrayLayout]) -> Columns:
        """Whole arrays, their chunks read in parallel and checked in order."""
        # Counted before anything is allocated: the manifest's counts may be of anything.
        samples = self._samples
        columns = {array.name: np.empty(array.shape, array.dtype) for array in arrays}
        checks = {array.name: self._check(array, samples) for array in arrays}
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            try:
                reads = {
                    array.name: self._start_reading(pool, array, columns[array.name], check)
                    for array, check in zip(arrays, checks.values(), strict=True)
                }
                for name, check in checks.items():
                    for index, read in enumerate(reads[name]):
                        for key, problem in check.chunk(index, read.result()):
                            where = self._folder.where(key)
                            raise IntegrityError(f"{where} {problem}; {HOW_TO_REPAIR}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return columns

    def _start_reading(
        self,
        pool: ThreadPoolExecutor,
        array: ArrayLayout,
        values: npt.NDArray[Any],
        check: ArrayCheck,
    ) -> list[Future[ReadChunk]]:
        data = values.reshape(-1).view(np.uint8)
        chunks = [data[at : at + array.payload_bytes] for at in array.chunk_starts]
        return [
            pool.submit(self._read_chunk, array, index, rows, check.ends(index))
            for index, rows in enumerate(chunks)
        ]

    def _read_chunk(
        self, array: ArrayLayout, index: int, rows: Buffer, ends: Sequence[int]
    ) -> ReadChunk:
        entry = self._entries[self._codec.chunk_name(array, index)]
        return read_chunk(self._folder, self._codec, array, entry, self._scan(array, rows, ends))

    def _scan(self, array: ArrayLayout, rows: Buffer, ends: Sequence[int]) -> RowScan:
        return RowScan(array, rows, ends, self._identity.target.vocab_size)

    def _read_rows(self, array: ArrayLayout, sample: StoredSample) -> npt.NDArray[Any]:
        """A sample's rows of an array, checked against their own crc."""
        span = sample_span(array, sample)
        values = np.empty((span.stop - span.start, *array.row_shape), array.dtype)
        rest = values.reshape(-1).view(np.uint8)
        crc, problem = 0, None
        for index, start, stop in array.chunks_of(span.start, span.stop):
            at = (start - index * array.chunk_rows) * array.row_bytes
            size = (stop - start) * array.row_bytes
            scan = self._scan(array, rest[:size], [size])
            if self._codec.is_raw:
                key = self._entries[self._codec.chunk_name(array, index)].key
                self._folder.read_into(key, at, scan.views, scan.filled)
            else:
                rows = np.empty(array.bytes_in(index), np.uint8)
                self._read_chunk(array, index, rows, [len(rows)])
                rest[:size] = rows[at : at + size]
                scan.fill()
            crc = concat_crc32c(crc, scan.crcs[0], size)
            problem = problem or scan.problem
            rest = rest[size:]
        if crc != span.crc:
            problem = f"is not what was written: its crc32c differs from the one in {SAMPLES_FILE}"
        if problem:
            keys = ", ".join(
                self._entries[self._codec.chunk_name(array, index)].key
                for index, _, _ in array.chunks_of(span.start, span.stop)
            )
            raise IntegrityError(
                f"{self._folder.url}: {array.name} of sample {span.sample_id} (in {keys}) "
                f"{problem}; {HOW_TO_REPAIR}"
            )
        return values

    def _check(self, array: ArrayLayout, samples: list[StoredSample]) -> ArrayCheck:
        names = (self._codec.chunk_name(array, index) for index in range(array.num_chunks))
        entries = [self._entries[name] for name in names]
        return ArrayCheck(array, entries, sample_spans(array, samples))
