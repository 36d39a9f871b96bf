"""Atomic, durable writes on a local disk: a reader sees a whole object or none, also after a crash.

The data goes to a temporary file beside the object, is synced, and gets its name last; then the
folder is synced, so that the name survives a power cut.
"""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import cast

from specpipe.schemas.errors import ConfigError, StoreError
from specpipe.stages.storage.store.faults import advice, is_transient_locally
from specpipe.stages.storage.store.protocol import TakeBlock
from specpipe.stages.untrusted.files import open_regular

TEMPORARY_PREFIX = ".tmp-"

_NOT_SUPPORTED = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class LocalDisk:
    """Files as objects; what is mounted like a disk counts as one."""

    def read(self, path: str, start: int, stop: int | None, num_expected: int | None) -> bytes:
        with BufferedReader(cast("RawIOBase", open_regular(path))) as file:
            # A read takes memory for what it is asked for, not for what there is.
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            return file.read(max(0, min(size, size if stop is None else stop) - start))

    def read_blocks(self, path: str, start: int, sizes: Sequence[int], take: TakeBlock) -> bool:
        # One buffer for all blocks: it stays in the cache, where whoever takes them works on them.
        # The kernel fills memory that is not in the cache several times slower.
        buffer = memoryview(bytearray(max(sizes, default=0)))
        with cast("RawIOBase", open_regular(path)) as file:
            file.seek(start)
            for number, size in enumerate(sizes):
                rest = block = buffer[:size]
                while len(rest):
                    num_read = file.readinto(rest)
                    if not num_read:
                        return False
                    rest = rest[num_read:]
                take(number, block)
        return True

    def write(self, path: str, data: bytes | memoryview) -> None:
        write_atomic(path, data)

    def move_in(self, path: str, source: str) -> None:
        descriptor = os.open(source, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(source, path)
        sync_folder(os.path.dirname(path))

    def create(self, path: str, data: bytes) -> bool:
        return create_atomic(path, data)

    def size(self, path: str) -> int | None:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        # A pipe or a device is refused where it is read.
        return None if stat.S_ISDIR(status.st_mode) else status.st_size

    def sizes(self, path: str, *, temporary: bool = False, links: bool = False) -> dict[str, int]:
        return file_sizes(path or "/", temporary=temporary, links=links)

    def remove(self, path: str) -> None:
        while os.path.isdir(path) and not os.path.islink(path):
            # Somebody else may remove files of it meanwhile.
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)

    def is_transient(self, error: BaseException) -> bool:
        return is_transient_locally(error)

    def advice(self, error: BaseException, path: str) -> str:
        disk = os.path.dirname(os.path.realpath(path))
        while not os.path.ismount(disk):
            disk = os.path.dirname(disk)
        return advice(error, f"on the disk that is mounted at {disk}")


def check_no_file(path: str | Path) -> None:
    """Raise ConfigError where a file stands at the path of a folder that is to be, or above it."""
    place = Path(os.path.abspath(path))
    there = next(part for part in (place, *place.parents) if part.exists())
    if not there.is_dir():
        raise ConfigError(f"{there} is a file, where a folder is to be; give another --out")


def write_file(path: Path, data: bytes) -> None:
    """Write or replace a file whole. Raises StoreError."""
    try:
        write_atomic(str(path), data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


def write_atomic(path: str, data: bytes | memoryview) -> None:
    """Write or replace the file `path`. Raises OSError."""
    with _synced_temporary(path, data) as temporary:
        os.replace(temporary, path)


def create_atomic(path: str, data: bytes | memoryview) -> bool:
    """Write the file `path` unless there is one; False if there is. Raises OSError.

    A hard link is atomic and fails on an existing name, unlike a rename.
    """
    if os.path.lexists(path):
        return False
    with _synced_temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # Over NFS the answer to a link that was made can get lost; the retry then finds it.
            return os.stat(temporary).st_nlink == 2
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            raise OSError(
                error.errno,
                "this file system has no hard links, by which one of several writers wins; use "
                "another disk, or the URL of the store that is mounted here",
            ) from None
        return True


def file_sizes(folder: str, *, temporary: bool = False, links: bool = False) -> dict[str, int]:
    """Path and size of every file below a folder, in no order: all but the temporary ones, or those
    alone.

    Symbolic links to folders are passed over: they may lead anywhere. With `links`, those that
    stand in the folder itself are followed. Files that come and go meanwhile are no error. Raises
    OSError.
    """
    sizes: dict[str, int] = {}
    # Not by recursion: folders may be nested deeper than Python calls.
    rest = [folder]
    while rest:
        path = rest.pop()
        try:
            entries = list(os.scandir(path))
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                rest.append(entry.path)
                continue
            with _no_such_file():
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    if links and path == folder:
                        rest.append(entry.path)
                elif entry.name.startswith(TEMPORARY_PREFIX) == temporary:
                    sizes[entry.path] = status.st_size
    return sizes


@contextmanager
def _no_such_file() -> Iterator[None]:
    """Pass over a file that went, or a link that leads nowhere."""
    try:
        yield
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise


@contextmanager
def _synced_temporary(path: str, data: bytes | memoryview) -> Iterator[str]:
    # A bare name has no folder to sync.
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{name}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        descriptor = os.open(temporary, flags, 0o666)
    except FileNotFoundError:
        _make_folder(folder)
        descriptor = os.open(temporary, flags, 0o666)
    try:
        try:
            view = memoryview(data)
            while len(view):
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)
    sync_folder(folder)


def _make_folder(folder: str) -> None:
    """Make a folder and those above it, durably."""
    above = os.path.dirname(folder)
    if not os.path.isdir(above):
        _make_folder(above)
    os.makedirs(folder, exist_ok=True)
    sync_folder(above)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the names in a folder last. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync names on their own, and refuse to be asked.
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)
