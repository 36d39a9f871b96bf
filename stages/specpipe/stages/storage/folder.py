"""One place for objects on any fsspec store; keys are relative paths with forward slashes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from specpipe.schemas.errors import ConfigError, IntegrityError, SpecpipeError, StoreError
from specpipe.schemas.location import without_credentials
from specpipe.stages.storage.local_disk import (
    TEMPORARY_PREFIX,
    create_atomic,
    file_sizes,
    write_atomic,
)

_PROBE = f"{TEMPORARY_PREFIX}writable"


class Folder:
    """Objects below one root. Every error names the object; StoreError means: retry later."""

    def __init__(self, url: str, filesystem: Any, root: str) -> None:
        self.url = url
        """Where this folder is, without credentials."""
        self._filesystem = filesystem
        self._root = root
        self._is_local = isinstance(filesystem, LocalFileSystem)

    @classmethod
    def open(cls, url: str) -> "Folder":
        """A local path or an fsspec URL (file://, memory://, s3://, ...); need not exist yet.

        Raises ConfigError for a protocol that is unknown or not installed.
        """
        try:
            # Other processes write to the same store, so listings must be fresh.
            filesystem, root = fsspec.url_to_fs(os.path.expanduser(url), use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"cannot open {without_credentials(url)}: {error}") from None
        root = root.rstrip("/")
        is_local = isinstance(filesystem, LocalFileSystem)
        return cls(root or "/" if is_local else without_credentials(url), filesystem, root)

    def child(self, key: str) -> "Folder":
        return Folder(f"{self.url.rstrip('/')}/{key}", self._filesystem, self._path(key))

    def where(self, key: str) -> str:
        """The object's address, for messages."""
        return f"{self.url.rstrip('/')}/{key}"

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes [start, stop) of an object; fewer where it ends before `stop`.

        With both given, one request without asking for the size. Raises IntegrityError if the
        object is missing.
        """
        with self._errors("read", key):
            return bytes(self._filesystem.cat_file(self._path(key), start=start, end=stop))

    def read_into(self, key: str, start: int, views: Sequence[memoryview]) -> None:
        """Fill the views, one after the other, from byte `start` on.

        Local objects are read straight into the views. Raises IntegrityError if the object is
        missing or ends too early.
        """
        with self._errors("read", key):
            if self._is_local:
                with open(self._path(key), "rb", buffering=0) as file:
                    file.seek(start)
                    for view in views:
                        while len(view):
                            num_read = file.readinto(view)
                            if not num_read:
                                raise self._truncated(key)
                            view = view[num_read:]
                return
        num_bytes = sum(map(len, views))
        data = memoryview(self.read(key, start, start + num_bytes))
        if len(data) != num_bytes:
            raise self._truncated(key)
        for view in views:
            view[:] = data[: len(view)]
            data = data[len(view) :]

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Write or replace an object, all or nothing."""
        with self._errors("write", key):
            if self._is_local:
                write_atomic(self._path(key), data)
            else:
                self._filesystem.pipe_file(self._path(key), bytes(data))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one, all or nothing; False if there is one."""
        with self._errors("create", key):
            if self._is_local:
                return create_atomic(self._path(key), data)
            try:
                self._filesystem.pipe_file(self._path(key), data, mode="create")
            except FileExistsError:
                return False
            return True

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of an object, None if it is missing."""
        with self._errors("look at", key):
            try:
                info = self._filesystem.info(self._path(key))
            except (FileNotFoundError, NotADirectoryError):
                return None
            return int(info["size"]) if info["type"] == "file" else None

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key and size in bytes of every object below the folder `prefix`, sorted by key."""
        with self._errors("list", prefix):
            path = self._path(prefix) if prefix else self._root
            if self._is_local:
                # fsspec leaves out a whole folder if a file in it vanishes meanwhile.
                sizes = file_sizes(path or "/")
            else:
                found = self._filesystem.find(path or "/", detail=True)
                sizes = {path: int(info["size"]) for path, info in found.items()}
            start = len(self._root) + 1
            return {path[start:]: size for path, size in sorted(sizes.items())}

    def list(self, prefix: str = "") -> "list[str]":
        """Keys of all objects below the folder `prefix`, sorted; half-written ones never."""
        return [*self.sizes(prefix)]

    def remove(self, key: str) -> None:
        """Remove an object, or a folder with all that is in it; a missing one is no error."""
        with self._errors("remove", key):
            if self._filesystem.exists(self._path(key)):
                self._filesystem.rm(self._path(key), recursive=True)

    def check_writable(self) -> None:
        """Raise StoreError unless objects can be written here."""
        self.write(_PROBE, b"")
        # A store may let us write, but not remove.
        with suppress(StoreError):
            self.remove(_PROBE)

    def _path(self, key: str) -> str:
        if not key or any(part in ("", ".", "..") for part in key.split("/")):
            raise IntegrityError(f"the key {key!r} leads out of {self.url}")
        return f"{self._root}/{key}"

    def _truncated(self, key: str) -> IntegrityError:
        return IntegrityError(f"{self.where(key)} is truncated; {HOW_TO_REPAIR}")

    @contextmanager
    def _errors(self, doing: str, key: str) -> Iterator[None]:
        try:
            yield
        except SpecpipeError:
            raise
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if doing == "read":
                raise IntegrityError(f"{self.where(key)} is missing; {HOW_TO_REPAIR}") from None
            raise StoreError(f"cannot {doing} {self.where(key)}: {error}") from error
        except Exception as error:
            # Stores raise errors of their own kinds; a local disk only OSError.
            if self._is_local and not isinstance(error, OSError):
                raise
            raise StoreError(f"cannot {doing} {self.where(key)}: {error}") from error


HOW_TO_REPAIR = (
    "`specpipe verify` names all that is damaged: remove those objects and run `specpipe dump` "
    "again, which makes them anew"
)
