"""Check an array chunk by chunk: each chunk against its entry, each sample against its own crc32c.

A chunk's crc shows damage; a sample's own shows that sound chunks hold something else than what
was written: swapped layers, swapped chunks. Every row goes through one crc computation for both,
while it is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specpipe.schemas.records.dump import CHUNK_TRAILER_BYTES, SAMPLES_FILE, ObjectEntry
from specpipe.stages.storage.chunks.arrays import ArrayLayout
from specpipe.stages.storage.chunks.read import ReadChunk
from specpipe.stages.storage.shard.samples import StoredSample
from specpipe.stages.storage.store.crc import concat_crc32c, crc32c


@dataclass(frozen=True, slots=True)
class Span:
    """A sample's rows [start, stop) of an array, and their crc32c."""

    start: int
    stop: int
    crc: int
    sample_id: str


def sample_spans(array: ArrayLayout, samples: Sequence[StoredSample]) -> list[Span]:
    """Where each sample's rows of an array are; they tile it in order."""
    return [sample_span(array, sample) for sample in samples]


def sample_span(array: ArrayLayout, sample: StoredSample) -> Span:
    if array.dimensions[0] == "token":
        start, stop = sample.offset, sample.offset + sample.num_tokens
    else:
        start, stop = sample.row_offset, sample.row_offset + sample.num_rows
    return Span(start, stop, sample.crc32c[array.name], sample.sample_id)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of a chunk that end at `end`; of a sample, if the samples are known."""

    span: Span | None
    end: int
    size: int
    is_last: bool


class ArrayCheck:
    """Checks the chunks of one array in order, and reports their problems."""

    def __init__(
        self, layout: ArrayLayout, entries: Sequence[ObjectEntry], spans: Sequence[Span]
    ) -> None:
        """`spans` tile the array's rows in order, or there are none."""
        self._layout = layout
        self._entries = entries
        self._crc = 0
        self._span_is_sound = True
        self._pieces: list[list[_Piece]] = [[] for _ in entries]
        for span in spans or [Span(0, layout.num_rows, 0, "")]:
            for index, start, stop in layout.chunks_of(span.start, span.stop):
                size = (stop - start) * layout.row_bytes
                end = (stop - index * layout.chunk_rows) * layout.row_bytes
                piece = _Piece(span if spans else None, end, size, stop == span.stop)
                self._pieces[index].append(piece)

    def ends(self, index: int) -> list[int]:
        """Where the pieces of a chunk end whose crc32c each is needed, in bytes."""
        return [piece.end for piece in self._pieces[index]]

    def chunk(self, index: int, chunk: ReadChunk | None) -> Iterator[tuple[str, str]]:
        """(key, problem) of each thing that is wrong with the next chunk.

        None if the chunk is unreadable, which is recorded in the findings already.
        """
        key, pieces = self._entries[index].key, self._pieces[index]
        crcs = chunk.crcs if chunk else [0] * len(pieces)
        is_sound = chunk is not None and self._is_sound(index, chunk)
        if chunk is not None and not is_sound:
            yield key, "is damaged: its crc32c is not the one it was written with"
        for piece, crc in zip(pieces, crcs, strict=True):
            self._crc = concat_crc32c(self._crc, crc, piece.size)
            self._span_is_sound &= is_sound
            if piece.span is None or not piece.is_last:
                continue
            if self._span_is_sound and self._crc != piece.span.crc:
                # Which of the sample's chunks it is cannot be told.
                for touched, _, _ in self._layout.chunks_of(piece.span.start, piece.span.stop):
                    yield (
                        self._entries[touched].key,
                        f"does not hold what was written of {self._layout.name} of sample "
                        f"{piece.span.sample_id}: the crc32c of its rows differs from the one in "
                        f"{SAMPLES_FILE}",
                    )
            self._crc, self._span_is_sound = 0, True
        if chunk is not None and is_sound and chunk.problem:
            yield key, chunk.problem

    def _is_sound(self, index: int, chunk: ReadChunk) -> bool:
        """Whether the object is the one that was written."""
        if chunk.tail is None:
            return True
        crc, written = 0, self._entries[index].crc32c
        for piece, piece_crc in zip(self._pieces[index], chunk.crcs, strict=True):
            crc = concat_crc32c(crc, piece_crc, piece.size)
        padding = chunk.tail[:-CHUNK_TRAILER_BYTES]
        trailer = chunk.tail[-CHUNK_TRAILER_BYTES:]
        return crc32c(padding, crc) == written == int.from_bytes(trailer, "little")
