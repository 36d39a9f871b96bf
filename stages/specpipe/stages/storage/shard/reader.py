"""Read a committed shard: nothing leaves here unchecked.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import (
    AUX_SCALES_FILE,
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    ObjectEntry,
    ShardManifest,
)
from specpipe.stages.process.reading_threads import ReadingThreads
from specpipe.stages.storage.chunks.arrays import AUX_SCALE, ArrayLayout, aux_array
from specpipe.stages.storage.chunks.codec import chunk_codec
from specpipe.stages.storage.chunks.read import ReadChunk, read_chunk
from specpipe.stages.storage.chunks.row_scan import RowScan
from specpipe.stages.storage.shard.array_check import ArrayCheck, sample_span, sample_spans
from specpipe.stages.storage.shard.buffer_pool import BufferPool
from specpipe.stages.storage.shard.int8_states import Quantiser
from specpipe.stages.storage.shard.listing import listed_arrays, shard_entries
from specpipe.stages.storage.shard.samples import StoredSample, check_samples, samples_from_parquet
from specpipe.stages.storage.shard.scales import AuxScales, read_scales
from specpipe.stages.storage.shard.states import SampleStates
from specpipe.stages.storage.store.crc import concat_crc32c
from specpipe.stages.storage.store.folder import HOW_TO_REPAIR, Folder
from specpipe.stages.storage.store.objects import read_object
from specpipe.stages.storage.vocab import VocabStatistics

_PARALLEL_READS = 4

Columns = dict[str, npt.NDArray[Any]]
MakeArray = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]


class ShardReader:
    """One committed shard, `folder` being the dump's root.

    The manifest locates everything, so no object is opened to find another. Samples and the
    arrays of one number a row are kept once read.
    """

    def __init__(
        self,
        folder: Folder,
        identity: DumpIdentity,
        manifest: ShardManifest,
        layers: Sequence[int] | None = None,
    ) -> None:
        """`layers` are those of the dump's whose states are read; None: all.

        Raises IntegrityError if the manifest is another dump's, or lists too much or little.
        """
        self._folder = folder
        self._identity = identity
        self._manifest = manifest
        self._where = folder.where(manifest.folder)
        if manifest.fingerprint != identity.fingerprint:
            raise IntegrityError(f"the manifest of {self._where} belongs to another dump")
        self._codec = chunk_codec(identity)
        self._entries = shard_entries(manifest)
        self._arrays = listed_arrays(identity, self._codec, manifest, self._where)
        self.arrays = [*self._arrays.values()]
        self.metadata = self._codec.metadata(self._arrays)
        """The objects that describe the arrays to other readers, as they must be."""
        self._layers = identity.layers if layers is None else tuple(layers)
        unread = {aux_array(layer) for layer in identity.layers if layer not in self._layers}
        self._wide = [
            array for name, array in self._arrays.items() if array.row_shape and name not in unread
        ]

    def samples(self) -> list[StoredSample]:
        """All samples of the shard, in the order of its axes."""
        return self._samples

    def vocab(self) -> VocabStatistics:
        return VocabStatistics.from_parquet(
            self._read(VOCAB_FILE), self._identity.target.vocab_size, f"{self._where}/{VOCAB_FILE}"
        )

    def scales(self) -> AuxScales:
        """Those that the shard's int8 states were written with."""
        scales = read_scales(self._folder, self._identity)
        if scales.crc32c != self._manifest.aux_scales_crc32c:
            raise IntegrityError(
                f"{self._folder.where(AUX_SCALES_FILE)} is not the one that {self._where} was "
                f"written with; {HOW_TO_REPAIR}"
            )
        return scales

    def chunks(self, array: ArrayLayout) -> list[ObjectEntry]:
        """The objects of an array, in order."""
        names = (self._codec.chunk_name(array, index) for index in range(array.num_chunks))
        return [self._entries[name] for name in names]

    def check(self, array: ArrayLayout, samples: Sequence[StoredSample]) -> ArrayCheck:
        """What takes the chunks of an array in order; without samples, of no sample's own crc."""
        return ArrayCheck(array, self.chunks(array), sample_spans(array, samples))

    def read_chunk(
        self,
        array: ArrayLayout,
        index: int,
        ends: Sequence[int],
        place: npt.NDArray[Any] | None = None,
    ) -> ReadChunk:
        """A chunk to its place, if there is one; `ends` are those of `ArrayCheck.ends`."""
        scan = self._scan(array, ends, place)
        entry = self._entries[self._codec.chunk_name(array, index)]
        return read_chunk(self._folder, self._codec, array, entry, scan)

    def read_all(self, pool: BufferPool | None = None) -> SampleStates:
        """The states of all samples, concatenated; every chunk and every sample checked.

        Large arrays lie in memory of the pool, if there is one.
        """
        manifest = self._manifest
        # Counted before anything is allocated: the manifest's counts may be of anything.
        samples = self._samples
        make = pool.array if pool else np.empty
        columns = self._columns(manifest.num_tokens, manifest.num_rows, make)
        self._read_arrays(self._wide, samples, self._places(columns))
        return self._states(columns | self._scalars)

    def read_sample(self, sample: StoredSample) -> SampleStates:
        """The states of one of `samples()`, checked.

        Of raw chunks only the sample's own rows are read, of others the whole of each chunk that
        holds some of them; but for the arrays of one number a row, which are read once.
        """
        columns = self._columns(sample.num_tokens, sample.num_rows, np.empty)
        places = self._places(columns)
        for array in self._wide:
            self._read_rows(array, sample, places[array.name])
        rows = slice(sample.row_offset, sample.row_offset + sample.num_rows)
        return self._states(columns | {name: row[rows] for name, row in self._scalars.items()})

    @cached_property
    def _samples(self) -> list[StoredSample]:
        where = f"{self._where}/{SAMPLES_FILE}"
        data = self._read(SAMPLES_FILE)
        samples = samples_from_parquet(data, [*self._arrays], where, self._manifest)
        check_samples(samples, self._identity, self._manifest, where)
        return samples

    @cached_property
    def _scalars(self) -> Columns:
        arrays = [array for array in self._arrays.values() if not array.row_shape]
        samples = self._samples
        columns = {array.name: np.empty(array.shape, array.dtype) for array in arrays}
        self._read_arrays(arrays, samples, columns)
        return columns

    @cached_property
    def _quantiser(self) -> Quantiser:
        return Quantiser(self.scales().channel_LH[self._at_layers])

    @property
    def _at_layers(self) -> list[int]:
        """Which of the dump's layers are read."""
        return [self._identity.layers.index(layer) for layer in self._layers]

    def _columns(self, num_tokens: int, num_rows: int, make: MakeArray) -> Columns:
        """Memory for what is read of so many tokens and rows, the layers in one array."""
        aux_dtype = self._arrays[aux_array(self._identity.layers[0])].dtype
        aux_shape = (num_tokens, len(self._layers), self._identity.target.hidden_size)
        columns: Columns = {"aux": make(aux_shape, aux_dtype)}
        counts = {"token": num_tokens, "row": num_rows}
        in_aux = {aux_array(layer) for layer in self._layers}
        for array in self._wide:
            if array.name not in in_aux:
                shape = (counts[array.dimensions[0]], *array.row_shape)
                columns[array.name] = make(shape, array.dtype)
        return columns

    def _places(self, columns: Columns) -> Columns:
        """Where the rows of each wide array go."""
        aux = {aux_array(layer): columns["aux"][:, at] for at, layer in enumerate(self._layers)}
        return columns | aux

    def _states(self, columns: Columns) -> SampleStates:
        if self._identity.states_dtype == "int8":
            scale_TL = columns.pop(AUX_SCALE)[:, self._at_layers]
            columns["aux"] = self._quantiser.dequantise(columns["aux"], scale_TL)
        return SampleStates.of_columns(columns)

    def _read(self, name: str) -> bytes:
        return read_object(self._folder, self._entries[name])

    def _read_arrays(
        self, arrays: Sequence[ArrayLayout], samples: list[StoredSample], places: Columns
    ) -> None:
        """Whole arrays to their places, their chunks read in parallel and checked in order."""
        checks = {array.name: self.check(array, samples) for array in arrays}
        threads = ReadingThreads(_PARALLEL_READS, "specpipe-chunk")
        try:
            reads = {
                array.name: self._start_reading(threads, array, places[array.name], check)
                for array, check in zip(arrays, checks.values(), strict=True)
            }
            for name, check in checks.items():
                for index, read in enumerate(reads[name]):
                    for key, problem in check.chunk(index, read.result()):
                        where = self._folder.where(key)
                        raise IntegrityError(f"{where} {problem}; {HOW_TO_REPAIR}")
        finally:
            threads.close()

    def _start_reading(
        self,
        threads: ReadingThreads,
        array: ArrayLayout,
        place: npt.NDArray[Any],
        check: ArrayCheck,
    ) -> list[Future[ReadChunk]]:
        return [
            threads.submit(
                self.read_chunk,
                array,
                index,
                check.ends(index),
                place[index * array.chunk_rows :],
            )
            for index in range(array.num_chunks)
        ]

    def _scan(
        self, array: ArrayLayout, ends: Sequence[int], place: npt.NDArray[Any] | None
    ) -> RowScan:
        return RowScan(array, ends, self._identity.target.vocab_size, place)

    def _read_rows(self, array: ArrayLayout, sample: StoredSample, place: npt.NDArray[Any]) -> None:
        """A sample's rows of an array to their place, checked against their own crc."""
        span = sample_span(array, sample)
        crc, problem = 0, None
        for index, start, stop in array.chunks_of(span.start, span.stop):
            at = (start - index * array.chunk_rows) * array.row_bytes
            size = (stop - start) * array.row_bytes
            scan = self._scan(array, [size], place[start - span.start :])
            if self._codec.is_raw:
                key = self._entries[self._codec.chunk_name(array, index)].key
                self._folder.read_blocks(key, at, scan.sizes, scan.take)
            else:
                rows = np.empty(
                    (array.bytes_in(index) // array.row_bytes, *array.row_shape), array.dtype
                )
                self.read_chunk(array, index, [rows.nbytes], rows)
                scan.take_all(rows.reshape(-1).view(np.uint8)[at : at + size].data)
            crc = concat_crc32c(crc, scan.crcs[0], size)
            problem = problem or scan.problem
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
