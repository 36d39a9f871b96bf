"""Objects on any fsspec store but the local disk."""

from collections.abc import Sequence
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.spec import AbstractFileSystem

from specpipe.stages.storage.store.faults import advice, http_status, is_transient
from specpipe.stages.storage.store.local_disk import TEMPORARY_PREFIX
from specpipe.stages.storage.store.protocol import TakeBlock, TornRead

S3_PROTOCOLS = ("s3", "s3a")


class RemoteStore:
    """An fsspec file system, each method one try: who retries is the folder."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem
        # A walk leaves out, without a word, what it cannot list; a store's own find does not.
        self._find_options = {"on_error": _raise} if _walks(filesystem) else {}

    def read(self, path: str, start: int, stop: int | None, num_expected: int | None) -> bytes:
        if stop is None:
            stop = self._size(path)
            num_expected = stop - start
        if stop <= start:
            return b""
        data = self._read(path, start, stop)
        if num_expected is not None and len(data) < num_expected:
            self._check_torn(path, start + len(data))
        return data

    def read_blocks(self, path: str, start: int, sizes: Sequence[int], take: TakeBlock) -> bool:
        num_bytes = sum(sizes)
        data = memoryview(self._read(path, start, start + num_bytes))
        if len(data) < num_bytes:
            self._check_torn(path, start + len(data))
            return False
        for number, size in enumerate(sizes):
            take(number, data[:size])
            data = data[size:]
        return True

    def write(self, path: str, data: bytes | memoryview) -> None:
        self._filesystem.pipe_file(path, bytes(data))

    def move_in(self, path: str, source: str) -> None:
        self._filesystem.put_file(source, path)

    def create(self, path: str, data: bytes) -> bool:
        try:
            self._filesystem.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except Exception as error:
            if http_status(error) == 412:  # Precondition failed: If-None-Match.
                return False
            raise
        return True

    def size(self, path: str) -> int | None:
        info = object_info(self._filesystem, path)
        return int(info["size"]) if info is not None and info["type"] == "file" else None

    def sizes(self, path: str, *, temporary: bool = False, links: bool = False) -> dict[str, int]:
        listed = self._filesystem.find(path or "/", detail=True, **self._find_options)
        return {
            name: int(info["size"])
            for name, info in listed.items()
            if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX) == temporary
            # Consoles make "folders" that are empty objects.
            and not name.endswith("/")
        }

    def remove(self, path: str) -> None:
        try:
            info = object_info(self._filesystem, path)
            if info is None:
                return
            if info["type"] == "file":
                self._filesystem.rm_file(path)
                return
            self._filesystem.rm(path, recursive=True)
        except FileNotFoundError:
            return
        # S3 removes many objects with one request, and s3fs drops the errors in its answer.
        if left := self.sizes(path):
            raise OSError(f"{len(left)} objects are left")

    def is_transient(self, error: BaseException) -> bool:
        return is_transient(error)

    def advice(self, error: BaseException, path: str) -> str:
        return advice(error)

    def _read(self, path: str, start: int, stop: int) -> bytes:
        try:
            return bytes(self._filesystem.cat_file(path, start=start, end=stop))
        except Exception as error:
            if http_status(error) == 416:  # The object ends before `start`.
                return b""
            raise

    def _size(self, path: str) -> int:
        size = self.size(path)
        if size is None:
            raise FileNotFoundError(path)
        return size

    def _check_torn(self, path: str, end: int) -> None:
        size = self._size(path)
        if size > end:
            raise TornRead(f"the answer broke off after byte {end} of {size}")


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path on it. Raises ValueError or ImportError.

    Credentials and endpoints come from where the file system looks for them: for S3 the AWS_*
    environment and profiles, and for every protocol fsspec's configuration.
    """
    protocols = [part.partition("://")[0] for part in url.split("::")]
    options = {name: _s3_options(name) for name in protocols if name in S3_PROTOCOLS}
    # Other processes write to the same store, so listings must be fresh.
    filesystem, root = fsspec.url_to_fs(url, use_listings_cache=False, **options)
    if protocols[0] in S3_PROTOCOLS:
        # Three loops of retries within each other would make minutes of each of ours.
        filesystem.retries = 1
    return filesystem, root


def object_info(filesystem: Any, path: str) -> dict[str, Any] | None:
    """What a file system says of a file or folder; None where there is none.

    Unlike fsspec's `exists`, it raises where the store fails.
    """
    try:
        return dict(filesystem.info(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        # By HTTP, fsspec takes whatever fails for a missing file.
        if error.__cause__ is not None and is_transient(error.__cause__):
            raise error.__cause__ from None
        return None


def _s3_options(protocol: str) -> dict[str, Any]:
    configured = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}} | configured}


def _walks(filesystem: Any) -> bool:
    """Whether find goes through folder after folder, as fsspec's own does."""
    while isinstance(filesystem, DirFileSystem):
        filesystem = filesystem.fs
    if isinstance(filesystem, AsyncFileSystem):
        return type(filesystem)._find is AsyncFileSystem._find
    return type(filesystem).find is AbstractFileSystem.find


def _raise(error: BaseException) -> None:
    """A folder that is not there, or vanished meanwhile, has nothing in it."""
    if not isinstance(error, FileNotFoundError):
        raise error
