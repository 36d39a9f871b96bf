"""One place for objects on any fsspec store; keys are relative paths with forward slashes."""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import TypeVar

from fsspec.implementations.local import LocalFileSystem

from specpipe.schemas.errors import ConfigError, IntegrityError, SpecpipeError, StoreError
from specpipe.schemas.location import without_credentials
from specpipe.stages.storage.store import retry
from specpipe.stages.storage.store.local_disk import TEMPORARY_PREFIX, LocalDisk, check_no_file
from specpipe.stages.storage.store.protocol import Store, TakeBlock
from specpipe.stages.storage.store.remote_store import S3_PROTOCOLS, RemoteStore, open_filesystem
from specpipe.stages.storage.store.retry import GaveUp, RetryPolicy
from specpipe.stages.untrusted.files import MOST_BYTES, NotRegularError
from specpipe.stages.untrusted.foreign import OF_THE_DISK

T = TypeVar("T")


class Folder:
    """Objects below one root. Every error names the object; StoreError means: retry later.

    What fails for a moment is tried again by the folder's policy before that.
    """

    def __init__(self, url: str, store: Store, root: str, policy: RetryPolicy) -> None:
        self.url = url
        """Where this folder is, without credentials."""
        self._store = store
        self._root = root
        self._policy = policy

    @classmethod
    def open(cls, url: str, policy: RetryPolicy | None = None) -> "Folder":
        """A local path or an fsspec URL (file://, memory://, s3://, ...); need not exist yet.

        Raises ConfigError for a protocol that is unknown or not installed.
        """
        shown = without_credentials(url)
        if shown != url and url.startswith(tuple(f"{name}://" for name in S3_PROTOCOLS)):
            raise ConfigError(
                f"{shown}: an S3 URL is s3://bucket/key alone, without ? or # in the key; give "
                "credentials and options by environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...) "
                "or profile"
            )
        try:
            filesystem, root = open_filesystem(os.path.expanduser(url))
        except (ValueError, ImportError) as error:
            raise ConfigError(f"cannot open {shown}: {without_credentials(str(error))}") from None
        root, policy = root.rstrip("/"), policy or retry.DEFAULT_POLICY
        if isinstance(filesystem, LocalFileSystem):
            return cls(root or "/", LocalDisk(), root, policy)
        return cls(shown, RemoteStore(filesystem), root, policy)

    def child(self, key: str) -> "Folder":
        return Folder(self.where(key), self._store, self._path(key), self._policy)

    def where(self, key: str) -> str:
        """The object's address, for messages."""
        return f"{self.url.rstrip('/')}/{key}"

    def read(
        self, key: str, start: int = 0, stop: int | None = None, num_expected: int | None = None
    ) -> bytes:
        """The bytes [start, stop) of an object; fewer where it ends before `stop`.

        With `stop` given, one request without asking for the size. Where fewer bytes come than are
        expected, the store is asked whether it has more, and then tried again. Raises
        IntegrityError if the object is missing.
        """
        path = self._path(key)
        return self._try("read", key, lambda: self._store.read(path, start, stop, num_expected))

    def read_small(self, key: str) -> bytes:
        """An object that is kept whole in memory. Raises IntegrityError beyond 256 MiB."""
        data = self.read(key, 0, MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise IntegrityError(f"{self.where(key)} has more than {MOST_BYTES} bytes")
        return data

    def read_blocks(self, key: str, start: int, sizes: Sequence[int], take: TakeBlock) -> None:
        """Hand over blocks of these sizes, one after the other, from byte `start` on.

        `take` is called with the number of each block and its bytes, which are lent for the call
        only; from the first on again, where the store is asked again. Raises IntegrityError if
        the object is missing or ends too early.
        """
        path = self._path(key)
        if not self._try("read", key, lambda: self._store.read_blocks(path, start, sizes, take)):
            raise IntegrityError(f"{self.where(key)} is truncated; {HOW_TO_REPAIR}")

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Write or replace an object, all or nothing."""
        path = self._path(key)
        self._try("write", key, lambda: self._store.write(path, data))

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """A folder of this machine for files that are to be moved in; gone when it is left.

        Raises StoreError where the disk fails while they are written.
        """
        beside = self._root if isinstance(self._store, LocalDisk) else None
        if beside is not None:
            self._try("make", TEMPORARY_PREFIX, lambda: os.makedirs(beside, exist_ok=True))
        with (
            _disk_errors(beside or tempfile.gettempdir()),
            TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=beside) as scratch,
        ):
            yield scratch

    def move_in(self, key: str, source: str) -> None:
        """Write or replace an object by a file in `scratch()`, all or nothing."""
        path = self._path(key)
        self._try("write", key, lambda: self._store.move_in(path, source))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one, all or nothing; False if there is one."""
        path, num_failed = self._path(key), 0

        def create() -> bool:
            nonlocal num_failed
            try:
                if self._store.create(path, data):
                    return True
                # A try that failed may have been ours, its answer lost.
                return num_failed > 0 and self._store.read(path, 0, len(data) + 1, None) == data
            except Exception:
                num_failed += 1
                raise

        return self._try("create", key, create)

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of an object, None if it is missing."""
        path = self._path(key)
        return self._try("look at", key, lambda: self._store.size(path))

    def sizes(self, prefix: str = "", *, links: bool = True) -> dict[str, int]:
        """Key and size in bytes of every object below the folder `prefix`, sorted by key.

        With `links`, a folder in the root may be a symbolic link (`shards` on another disk); other
        links to folders are passed over, since they may lead anywhere.
        """
        return self._sizes(prefix, temporary=False, links=links and not prefix)

    def leftovers(self) -> dict[str, int]:
        """Key and size of what is half-written: by writers that were killed, or are at work.

        What symbolic links lead to is not among it.
        """
        return self._sizes("", temporary=True, links=False)

    def list(self, prefix: str = "") -> "list[str]":
        """Keys of all objects below the folder `prefix`, sorted; half-written ones never."""
        return [*self.sizes(prefix)]

    def remove(self, key: str) -> None:
        """Remove an object, or a folder with all that is in it; a missing one is no error."""
        path = self._path(key)
        self._try("remove", key, lambda: self._store.remove(path))

    def check_writable(self) -> None:
        """Raise StoreError unless objects can be written here, and each be created only once.

        Raises ConfigError where the store lets a second writer replace what the first created, and
        where a file stands in the way of the folder.
        """
        if isinstance(self._store, LocalDisk):
            check_no_file(self._root)
        probe = f"{TEMPORARY_PREFIX}writable-{uuid.uuid4().hex}"
        self.create(probe, b"first")
        is_replaced = self.create(probe, b"second")
        # A store may let us write, but not remove.
        with suppress(StoreError):
            self.remove(probe)
        if is_replaced:
            raise ConfigError(
                f"{self.url}: this store cannot create an object only if there is none (on S3: "
                "If-None-Match), so two workers could replace each other's shards; use another"
            )

    def _sizes(self, prefix: str, *, temporary: bool, links: bool) -> dict[str, int]:
        path = self._path(prefix) if prefix else self._root
        sizes = self._try(
            "list", prefix, lambda: self._store.sizes(path, temporary=temporary, links=links)
        )
        start = len(self._root) + 1
        return {path[start:]: size for path, size in sorted(sizes.items())}

    def _path(self, key: str) -> str:
        if not key or any(part in ("", ".", "..") for part in key.split("/")):
            raise IntegrityError(f"the key {key!r} leads out of {self.url}")
        return f"{self._root}/{key}"

    def _try(self, doing: str, key: str, action: Callable[[], T]) -> T:
        try:
            return self._policy.run(action, self._store.is_transient)
        except GaveUp as error:
            raise StoreError(
                f"{self._failed(doing, key, error.__cause__)} ({error}); run the same command "
                "again when the store answers"
            ) from error.__cause__
        except SpecpipeError:
            raise
        except NotRegularError as error:
            raise IntegrityError(f"{self.where(key)} is {error}, not a file") from None
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if doing == "read":
                raise IntegrityError(f"{self.where(key)} is missing; {HOW_TO_REPAIR}") from None
            raise self._refused(doing, key, error) from error
        except Exception as error:
            # Stores raise errors of their own kinds; a local disk only OSError.
            if isinstance(self._store, LocalDisk) and not isinstance(error, OSError):
                raise
            raise self._refused(doing, key, error) from error

    def _refused(self, doing: str, key: str, error: Exception) -> StoreError:
        path = f"{self._root}/{key}"
        return StoreError(f"{self._failed(doing, key, error)}; {self._store.advice(error, path)}")

    def _failed(self, doing: str, key: str, error: BaseException | None) -> str:
        text = without_credentials(str(error)) or type(error).__name__
        return f"cannot {doing} {self.where(key)}: {text}"


@contextmanager
def _disk_errors(place: str) -> Iterator[None]:
    """Turn what a disk answers to a write into a StoreError; other errors pass through."""
    try:
        yield
    except SpecpipeError:
        raise
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        advice = LocalDisk().advice(error, place)
        raise StoreError(f"cannot write in {place}: {error.strerror or error}; {advice}") from error


def place_of_file(url: str) -> tuple[Folder, str]:
    """The folder of a file that is to be written, and the file's name in it.

    Raises ConfigError where the URL is that of a folder.
    """
    above, slash, name = url.rpartition("/")
    if not name or os.path.isdir(os.path.expanduser(url)):
        raise ConfigError(f"{without_credentials(url)} is a folder; give the name of a file in it")
    return Folder.open(above or slash or "."), name


HOW_TO_REPAIR = (
    "`specpipe verify` names all that is damaged: remove those objects and run `specpipe dump` "
    "again, which makes them anew"
)
