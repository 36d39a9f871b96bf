"""The bytes of one input file, decompressed; a failing store and a damaged file are different
errors."""

import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from fsspec.compression import compr

from specpipe.schemas.errors import ConfigError, InputError, SpecpipeError, StoreError
from specpipe.schemas.location import without_credentials
from specpipe.stages.text.input.files import InputFile

_BUFFER_BYTES = 1 << 20

_DAMAGE = (
    OSError,  # gzip, bz2 and zstd; what the store raises is a StoreError already
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    NotImplementedError,  # a zip's method
    RuntimeError,  # a zip with a password
)


class DamagedError(InputError):
    """A file that cannot be decompressed, or not further than it was read."""


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

    Raises StoreError where the store fails, DamagedError where the compressed file is truncated or
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
            # zipfile takes any error that it meets for the archive's.
            if isinstance(error.__context__, StoreError):
                raise error.__context__ from None
            raise DamagedError(
                f"{file.name}: not a readable {compression} file: it is truncated or damaged "
                f"({error})"
            ) from error


def _decompressed(raw: Any, compression: str, name: str) -> Any:
    if compression == "zstd":
        # zstandard's own reader takes a truncated frame for whole, and a frame for the file.
        return io.BufferedReader(pa.CompressedInputStream(raw, "zstd"), _BUFFER_BYTES)
    if compression == "zip":
        return _only_member(raw, name)
    if compression not in compr:
        raise ConfigError(f"data {name}: no {compression} decompressor is installed")
    return compr[compression](raw, mode="rb")


def _only_member(raw: Any, name: str) -> Any:
    archive = zipfile.ZipFile(raw)
    members = [info for info in archive.infolist() if not info.is_dir()]
    if len(members) != 1:
        raise InputError(
            f"{name}: not a readable zip file: it holds {len(members)} files; zip one, or unpack it"
        )
    return archive.open(members[0])
