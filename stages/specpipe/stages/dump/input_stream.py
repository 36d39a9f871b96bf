"""The bytes of one input file, decompressed; a store that fails is told from a damaged file."""

import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zstandard
from fsspec.compression import compr

from specpipe.schemas.errors import ConfigError, InputError, SpecpipeError, StoreError
from specpipe.schemas.location import without_credentials
from specpipe.stages.dump.input_files import InputFile

_BUFFER_BYTES = 1 << 20
_ZSTD_BYTES = 1 << 14
"""Compressed bytes that are expanded at a time: few, since they may expand ten-thousandfold."""

_DAMAGE = (
    OSError,  # gzip and bz2; what the store raises is a StoreError already
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zstandard.ZstdError,
    NotImplementedError,  # a zip's method
    RuntimeError,  # a zip with a password
)


class StoreFile(io.RawIOBase):
    """A file of a store; whatever goes wrong in reading it is a StoreError."""

    def __init__(self, file: InputFile) -> None:
        self._name = file.name
        self._file: Any = io.BytesIO()
        with self._errors():
            self._file = file.filesystem.open(file.path, "rb")

    def readinto(self, view: Any) -> int:
        with self._errors():
            data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._errors():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SpecpipeError:
            raise
        except Exception as error:  # a store's client raises errors of its own
            raise StoreError(f"{self._name}: {without_credentials(str(error))}") from error


@contextmanager
def open_stream(file: InputFile) -> Iterator[Any]:
    """A binary stream of the file's contents, decompressed as its suffix says.

    Raises StoreError where the store fails, InputError where the compressed file is truncated or
    damaged, both also while the stream is read inside the context.
    """
    compression = file.compression
    with io.BufferedReader(StoreFile(file), _BUFFER_BYTES) as raw:
        if compression is None:
            yield raw
            return
        try:
            with _decompressed(raw, compression, file.name) as stream:
                yield stream
        except SpecpipeError:
            raise
        except _DAMAGE as error:
            raise InputError(
                f"{file.name}: not a readable {compression} file: it is truncated or damaged "
                f"({error})"
            ) from error


def _decompressed(raw: io.BufferedReader, compression: str, name: str) -> Any:
    if compression == "zstd":
        return io.BufferedReader(_ZstdFile(raw), _BUFFER_BYTES)
    if compression == "zip":
        return _only_member(raw, name)
    if compression not in compr:
        raise ConfigError(f"data {name}: no {compression} decompressor is installed")
    return compr[compression](raw, mode="rb")


def _only_member(raw: io.BufferedReader, name: str) -> Any:
    archive = zipfile.ZipFile(raw)
    members = [info for info in archive.infolist() if not info.is_dir()]
    if len(members) != 1:
        raise InputError(
            f"{name}: not a readable zip file: it holds {len(members)} files; zip one, or unpack it"
        )
    return archive.open(members[0])


class _ZstdFile(io.RawIOBase):
    """All frames of a zstd file; EOFError where the last one has no end.

    zstandard's own reader stops after the first frame, and takes a truncated one for whole.
    """

    def __init__(self, compressed: io.BufferedReader) -> None:
        self._compressed = compressed
        self._frame: Any = None
        self._ahead = b""
        self._text = memoryview(b"")

    def readinto(self, view: Any) -> int:
        while not self._text:
            data = self._ahead or self._compressed.read(_ZSTD_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            frame = self._frame or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            self._text = memoryview(frame.decompress(data))
            self._frame = None if frame.eof else frame
            self._ahead = frame.unused_data if frame.eof else b""
        num_bytes = min(len(view), len(self._text))
        view[:num_bytes] = self._text[:num_bytes]
        self._text = self._text[num_bytes:]
        return num_bytes

    def readable(self) -> bool:
        return True
