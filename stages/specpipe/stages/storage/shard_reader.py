"""Read a committed shard: nothing leaves here unchecked.

Legend: T tokens, S verifier rows, L aux layers, H hidden.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from specpipe.schemas.dump import (
    SAMPLES_FILE,
    VOCAB_FILE,
    DumpIdentity,
    ObjectEntry,
    ShardManifest,
)
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.array_check import ArrayCheck, Span, aux_span, final_span
from specpipe.stages.storage.arrays import listed_arrays, shard_entries, values_problem
from specpipe.stages.storage.crc import crc32c
from specpipe.stages.storage.folder import HOW_TO_REPAIR, Folder
from specpipe.stages.storage.objects import read_object
from specpipe.stages.storage.samples import StoredSample, check_samples, samples_from_parquet
from specpipe.stages.storage.states import SampleStates
from specpipe.stages.storage.vocab import VocabStatistics

_PARALLEL_READS = 4


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
            aux_TLH=self._read_array("aux", [aux_span(sample) for sample in self._samples]),
            final_SH=self._read_array("final", [final_span(sample) for sample in self._samples]),
            **self._row_columns,
        )

    def read_sample(self, sample: StoredSample) -> SampleStates:
        """The states of one of `samples()`: no byte of `aux` and `final` beyond its own is read."""
        span = final_span(sample)
        return SampleStates(
            aux_TLH=self._read_rows("aux", aux_span(sample)),
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
        return {f"{n}_S": self._read_array(n) for n in ("logz", "token_logprob", "argmax")}

    def _read(self, name: str) -> bytes:
        return read_object(self._folder, self._entries[name])

    def _read_array(self, name: str, spans: Sequence[Span] = ()) -> npt.NDArray[Any]:
        """A whole array, read in parallel; `spans`, where given, tile its rows."""
        layout = self._arrays[name]
        entries = [self._entries[layout.chunk_name(i)] for i in range(layout.num_chunks)]
        check = ArrayCheck(layout, entries, spans, self._identity.target.vocab_size)
        values = np.empty(layout.shape, layout.dtype)
        data = values.reshape(-1).view(np.uint8)
        rows = [data[at : at + layout.payload_bytes] for at in layout.chunk_starts]
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            tails = [
                pool.submit(self._read_chunk, entry, chunk)
                for entry, chunk in zip(entries, rows, strict=True)
            ]
            for index, tail in enumerate(tails):
                for key, problem in check.chunk(index, rows[index], tail.result()):
                    pool.shutdown(cancel_futures=True)
                    raise IntegrityError(f"{self._folder.where(key)} {problem}; {HOW_TO_REPAIR}")
        return values

    def _read_chunk(self, entry: ObjectEntry, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Read a chunk's rows to where they belong; returns its padding and trailer."""
        tail = np.empty(entry.size - len(rows), np.uint8)
        self._folder.read_into(entry.key, 0, [rows.data, tail.data])
        return tail

    def _read_rows(self, name: str, span: Span) -> npt.NDArray[Any]:
        """A sample's rows of an array, checked against their own crc."""
        layout = self._arrays[name]
        values = np.empty((span.stop - span.start, *layout.row_shape), layout.dtype)
        views = values.reshape(-1).view(np.uint8).data
        for index, start, stop in layout.chunks_of(span.start, span.stop):
            at = (start - index * layout.chunk_rows) * layout.row_bytes
            size = (stop - start) * layout.row_bytes
            self._folder.read_into(self._entries[layout.chunk_name(index)].key, at, [views[:size]])
            views = views[size:]
        problem = values_problem(layout, values, self._identity.target.vocab_size)
        if crc32c(values.reshape(-1).view(np.uint8)) != span.crc:
            problem = f"is not what was written: its crc32c differs from the one in {SAMPLES_FILE}"
        if problem:
            keys = ", ".join(
                self._entries[layout.chunk_name(index)].key
                for index, _, _ in layout.chunks_of(span.start, span.stop)
            )
            raise IntegrityError(
                f"{self._folder.url}: {name} of sample {span.sample_id} (in {keys}) {problem}; "
                f"{HOW_TO_REPAIR}"
            )
        return values
