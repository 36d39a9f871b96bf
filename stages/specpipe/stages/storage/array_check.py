"""Check an array chunk by chunk: each chunk against its entry, each sample against its own crc32c.

A chunk's crc shows damage; a sample's own shows that sound chunks hold something else than what
was written: swapped layers, swapped chunks. Every row goes through one crc computation for both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specpipe.schemas.dump import CHUNK_TRAILER_BYTES, SAMPLES_FILE, ObjectEntry
from specpipe.stages.storage.arrays import ArrayLayout, values_problem
from specpipe.stages.storage.chunk_codec import Buffer
from specpipe.stages.storage.crc import concat_crc32c, crc32c
from specpipe.stages.storage.samples import StoredSample


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


class ArrayCheck:
    """Takes the chunks of one array in order, and says what is wrong with them."""

    def __init__(
        self,
        layout: ArrayLayout,
        entries: Sequence[ObjectEntry],
        spans: Sequence[Span],
        vocab_size: int,
    ) -> None:
        """`spans` tile the array's rows in order, or there are none."""
        self._layout = layout
        self._entries = entries
        self._vocab_size = vocab_size
        self._spans = iter(spans)
        self._span = next(self._spans, None)
        self._crc = 0
        self._span_is_sound = True

    def chunk(
        self, index: int, rows: Buffer | None, tail: Buffer | None
    ) -> Iterator[tuple[str, str]]:
        """(key, problem) of each thing that is wrong with the next chunk.

        `rows` are the bytes of its rows without padding, `tail` those of padding and trailer;
        None where the object's crc has been compared already. `rows` None: the chunk could not be
        read, and has been reported.
        """
        layout, key = self._layout, self._entries[index].key
        first = index * layout.chunk_rows
        stop = min(layout.num_rows, first + layout.chunk_rows)
        pieces, chunk_crc, at = [], 0, first
        for span, end in self._pieces_until(stop):
            size = (end - at) * layout.row_bytes
            crc = 0
            if rows is not None:
                crc = crc32c(rows[(at - first) * layout.row_bytes :][:size])
                if tail is not None:
                    chunk_crc = concat_crc32c(chunk_crc, crc, size)
            pieces.append((span, end, crc, size))
            at = end
        is_sound = rows is not None and (tail is None or self._is_sound(index, chunk_crc, tail))
        if rows is not None and not is_sound:
            yield key, "is damaged: its crc32c is not the one it was written with"
        for span, end, crc, size in pieces:
            self._crc = concat_crc32c(self._crc, crc, size)
            self._span_is_sound &= is_sound
            if span is None or end < span.stop:
                continue
            if self._span_is_sound and self._crc != span.crc:
                # Which of the sample's chunks it is cannot be told.
                for touched, _, _ in layout.chunks_of(span.start, span.stop):
                    yield (
                        self._entries[touched].key,
                        f"does not hold what was written of {layout.name} of sample "
                        f"{span.sample_id}: the crc32c of its rows differs from the one in "
                        f"{SAMPLES_FILE}",
                    )
            self._crc, self._span_is_sound = 0, True
        if rows is not None and is_sound:
            values = rows.view(layout.dtype).reshape(-1, *layout.row_shape)
            if problem := values_problem(layout, values, self._vocab_size):
                yield key, problem

    def _pieces_until(self, stop: int) -> Iterator[tuple[Span | None, int]]:
        """The spans that end in or reach into the rows before `stop`, and where each is cut."""
        while self._span is not None and self._span.stop <= stop:
            yield self._span, self._span.stop
            self._span = next(self._spans, None)
        if self._span is None or self._span.start < stop:
            yield self._span, stop

    def _is_sound(self, index: int, crc: int, tail: Buffer) -> bool:
        written = self._entries[index].crc32c
        padding, trailer = tail[:-CHUNK_TRAILER_BYTES], tail[-CHUNK_TRAILER_BYTES:]
        return crc32c(padding, crc) == written == int.from_bytes(trailer.tobytes(), "little")
