"""Read a committed shard: nothing leaves here unchecked.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
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
)
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.arrays import ArrayLayout, listed_arrays, shard_entries, values_problem
from specpipe.stages.storage.crc import concat_crc32c, crc32c
from specpipe.stages.storage.folder import HOW_TO_REPAIR, Folder
from specpipe.stages.storage.objects import check_crc, read_object
from specpipe.stages.storage.samples import StoredSample, check_samples, samples_from_parquet
from specpipe.stages.storage.states import SampleStates
from specpipe.stages.storage.vocab import VocabStatistics

_PARALLEL_READS = 4


@dataclass(frozen=True, slots=True)
class _Span:
    """Rows [start, stop) of an axis: those of a sample, with their crc32c, or all."""

    start: int
    stop: int
    crc: int | None = None
    sample_id: str = ""


def _aux_span(sample: StoredSample) -> _Span:
    start = sample.offset
    return _Span(start, start + sample.num_tokens, sample.aux_crc32c, sample.sample_id)


def _final_span(sample: StoredSample) -> _Span:
    start = sample.row_offset
    return _Span(start, start + sample.num_rows, sample.final_crc32c, sample.sample_id)


class ShardReader:
    """One committed shard, `folder` being the dump's root.

    The manifest's sizes locate everything, so no object is opened to find another. Samples and
    the arrays of one number a row are kept once read.
    """

    def __init__(self, folder: Folder, identity: DumpIdentity, manifest: ShardManifest) -> None:
        """Raises IntegrityError if the manifest is another dump's, or lists too much or little."""
        self._folder = folder
        self._identity = identity
        self._manifest = manifest
        self._where = folder.where(manifest.folder)
        if manifest.fingerprint != identity.fingerprint:
            raise IntegrityError(f"the manifest of {self._where} belongs to another dump")
        self._entries = shard_entries(manifest)
        self._arrays = listed_arrays(identity, manifest, self._where)

    def samples(self) -> list[StoredSample]:
        """All samples of the shard, in the order of its axes."""
        return self._samples

    def vocab(self) -> VocabStatistics:
        return VocabStatistics.from_parquet(
            self._read(VOCAB_FILE), self._identity.target.vocab_size, f"{self._where}/{VOCAB_FILE}"
        )

    def read_all(self) -> SampleStates:
        """The states of all samples, concatenated; every chunk and every sample checked."""
        return SampleStates(
            aux_TLH=self._read_array("aux", [_aux_span(sample) for sample in self._samples]),
            final_SH=self._read_array("final", [_final_span(sample) for sample in self._samples]),
            **self._row_columns,
        )

    def read_sample(self, sample: StoredSample) -> SampleStates:
        """The states of one of `samples()`: no byte of `aux` and `final` beyond its own is read."""
        span = _final_span(sample)
        return SampleStates(
            aux_TLH=self._read_rows("aux", _aux_span(sample)),
            final_SH=self._read_rows("final", span),
            **{name: values[span.start : span.stop] for name, values in self._row_columns.items()},
        )

    @cached_property
    def _samples(self) -> list[StoredSample]:
        where = f"{self._where}/{SAMPLES_FILE}"
        samples = samples_from_parquet(self._read(SAMPLES_FILE), where)
        check_samples(samples, self._identity, self._manifest, where)
        return samples

    @cached_property
    def _row_columns(self) -> dict[str, npt.NDArray[Any]]:
        """logz_S, token_logprob_S and argmax_S of the whole shard."""
        columns = {f"{n}_S": self._read_array(n) for n in ("logz", "token_logprob", "argmax")}
        for column in columns.values():
            column.flags.writeable = False
        return columns

    def _read(self, name: str) -> bytes:
        return read_object(self._folder, self._entry(name))

    def _entry(self, name: str) -> ObjectEntry:
        return self._entries[name]

    def _read_array(self, name: str, spans: Sequence[_Span] = ()) -> npt.NDArray[Any]:
        """A whole array. `spans`, where given, tile its rows; each row's crc is computed once."""
        layout = self._arrays[name]
        values = np.empty(layout.shape, layout.dtype)
        data = values.reshape(-1).view(np.uint8)
        crcs = [0] * layout.num_chunks
        problems: list[str] = []
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            tails = [
                pool.submit(self._read_chunk, layout, index, data)
                for index in range(layout.num_chunks)
            ]
            for span in spans or [_Span(0, layout.num_rows)]:
                crc = 0
                for index, start, stop in layout.chunks_of(span.start, span.stop):
                    tails[index].result()
                    piece = data[start * layout.row_bytes : stop * layout.row_bytes]
                    piece_crc = crc32c(piece)
                    crc = concat_crc32c(crc, piece_crc, len(piece))
                    crcs[index] = concat_crc32c(crcs[index], piece_crc, len(piece))
                    if problem := self._values_problem(layout, values[start:stop]):
                        problems.append(f"{self._where}/{layout.chunk_name(index)} {problem}")
                if span.crc not in (None, crc):
                    problems.append(self._disagreement(layout, span))
        # A damaged chunk explains all else, so it is named first.
        for index, crc in enumerate(crcs):
            tail = tails[index].result()
            padding, trailer = tail[:-CHUNK_TRAILER_BYTES], tail[-CHUNK_TRAILER_BYTES:]
            entry = self._entry(layout.chunk_name(index))
            check_crc(self._folder, entry, crc32c(padding, crc), trailer.tobytes())
        if problems:
            raise IntegrityError(f"{problems[0]}; {HOW_TO_REPAIR}")
        return values

    def _read_chunk(
        self, layout: ArrayLayout, index: int, data: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint8]:
        """Read a chunk's rows to where they belong in `data`; returns its padding and trailer."""
        at = index * layout.chunk_rows * layout.row_bytes
        rows = data[at : at + layout.chunk_rows * layout.row_bytes]
        tail = np.empty(layout.chunk_bytes - len(rows), np.uint8)
        key = self._entry(layout.chunk_name(index)).key
        self._folder.read_into(key, 0, [rows.data, tail.data])
        return tail

    def _read_rows(self, name: str, span: _Span) -> npt.NDArray[Any]:
        """Some rows of an array, checked against their own crc."""
        layout = self._arrays[name]
        num_rows = span.stop - span.start
        values = np.empty((num_rows, *layout.row_shape), layout.dtype)
        data = values.reshape(-1).view(np.uint8)
        for index, start, stop in layout.chunks_of(span.start, span.stop):
            piece = data[
                (start - span.start) * layout.row_bytes : (stop - span.start) * layout.row_bytes
            ]
            at = (start - index * layout.chunk_rows) * layout.row_bytes
            self._folder.read_into(self._entry(layout.chunk_name(index)).key, at, [piece.data])
        if crc32c(data) != span.crc:
            raise IntegrityError(f"{self._disagreement(layout, span)}; {HOW_TO_REPAIR}")
        if problem := self._values_problem(layout, values):
            raise IntegrityError(
                f"{self._where}: {name} of sample {span.sample_id} {problem}; {HOW_TO_REPAIR}"
            )
        return values

    def _values_problem(self, layout: ArrayLayout, values: npt.NDArray[Any]) -> str | None:
        return values_problem(layout, values, self._identity.target.vocab_size)

    def _disagreement(self, layout: ArrayLayout, span: _Span) -> str:
        chunks = [layout.chunk_name(i) for i, _, _ in layout.chunks_of(span.start, span.stop)]
        return (
            f"{self._where}: {layout.name} of sample {span.sample_id} (in {', '.join(chunks)}) is "
            f"not what was written: its crc32c differs from the one in {SAMPLES_FILE}"
        )
