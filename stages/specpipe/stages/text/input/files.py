"""Which files the input consists of: paths, globs and folders, on any fsspec store."""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import available_protocols, get_filesystem_class
from fsspec.utils import get_protocol, glob_translate, infer_compression

from specpipe.schemas.errors import ConfigError, SpecpipeError, StoreError
from specpipe.schemas.location import without_credentials
from specpipe.stages.storage.store.remote_store import S3_PROTOCOLS, object_info

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")

_WHOLE_NAMES = ("file", "local", *S3_PROTOCOLS)

REJECTED_SUFFIX = ".rejected.jsonl"
PROVENANCE_SUFFIX = ".provenance.json"
"""What `specpipe prepare` writes beside its output; no input."""


@dataclass(frozen=True, slots=True)
class InputFile:
    filesystem: Any
    path: str
    name: str
    """For messages and for the samples' sources; holds no credentials."""

    @property
    def compression(self) -> str | None:
        compression: str | None = infer_compression(self.path)
        return compression

    @property
    def is_parquet(self) -> bool:
        return self.path.lower().endswith(PARQUET_SUFFIXES)


def input_files(urls: Sequence[str]) -> list[InputFile]:
    """The files of each URL, in the order of the URLs.

    A glob stands for the files that match, a folder for the `.jsonl`, `.json`, `.ndjson` and
    `.parquet` files in it and below, compressed ones included; both in sorted order, without
    hidden files and without what `specpipe prepare` leaves beside its output.
    Raises ConfigError for what does not exist or holds no such file.
    """
    files: list[InputFile] = []
    for url in urls:
        shown = without_credentials(url)
        try:
            filesystem, path = _place(url)
            info = object_info(filesystem, path)
            if info is None and has_magic(path):
                matches = _matching(filesystem, path, shown)
            elif info is None:
                raise ConfigError(f"data {shown}: no such file")
            elif info["type"] == "directory":
                matches = _below(filesystem, path, shown)
            else:
                name = _name(filesystem, path) if _is_s3(filesystem) else shown
                files.append(_file(filesystem, path, name))
                continue
        except SpecpipeError:
            raise
        except (ImportError, ValueError) as error:
            raise ConfigError(f"data {shown}: {without_credentials(str(error))}") from error
        except Exception as error:  # a store's client raises errors of its own
            raise StoreError(f"data {shown}: {without_credentials(str(error))}") from error
        files += [_file(filesystem, path, _name(filesystem, path)) for path in matches]
    return files


def is_input(out: str, urls: Sequence[str]) -> bool:
    """Whether a file that is to be written at `out` is, or would become, one of the input files."""
    place, path = _place(out)
    for url in urls:
        filesystem, given = _place(url)
        if type(filesystem) is not type(place):
            continue
        below = path.startswith(given.rstrip("/") + "/") and filesystem.isdir(given)
        if path == given or below or (has_magic(given) and re.match(glob_translate(given), path)):
            return True
    return False


def _place(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path on it.

    fsspec takes `::` in any name for a file system within another (`zip://a::b.zip`). That is none
    where the first one holds no other.
    """
    first = url.partition("::")[0]
    protocol = get_protocol(first)
    # Other processes write to the same store, so listings must be fresh.
    if first == url or first in available_protocols() or protocol not in _WHOLE_NAMES:
        filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
        return filesystem, path
    store = get_filesystem_class(protocol)
    filesystem = store(**store._get_kwargs_from_urls(url), use_listings_cache=False)
    return filesystem, store._strip_protocol(url)


def _matching(filesystem: Any, pattern: str, shown: str) -> list[str]:
    start = min(pattern.find(sign) for sign in "*?[" if sign in pattern)
    folder, _, _ = pattern[:start].rpartition("/")
    depth = None if "**" in pattern else pattern.count("/", start) + 1
    is_match = re.compile(glob_translate(pattern)).match
    paths = [path for path in _files_below(filesystem, folder, depth) if is_match(path)]
    if not paths:
        raise ConfigError(f"data {shown}: nothing matches")
    return sorted(paths)


def _below(filesystem: Any, folder: str, shown: str) -> list[str]:
    inside = sorted(_files_below(filesystem, folder))
    paths = [path for path in inside if _suffix(path) in (*JSON_SUFFIXES, *PARQUET_SUFFIXES)]
    if not paths:
        others = ", ".join(posixpath.basename(path) for path in inside[:3])
        raise ConfigError(
            f"data {shown}: a folder without .jsonl, .json, .ndjson or .parquet files"
            + (f" (it holds {others}{', ...' if len(inside) > 3 else ''})" if others else "")
        )
    return paths


def _files_below(filesystem: Any, folder: str, depth: int | None = None) -> Iterator[str]:
    """The files in a folder and below, `depth` levels of them, without those that are no input.

    fsspec's own glob and find leave out, without a word, what they cannot list, and links.
    """
    try:
        entries = filesystem.ls(folder, detail=True)
    except FileNotFoundError:  # It is none, or vanished meanwhile.
        return
    for entry in entries:
        path = entry["name"].rstrip("/")
        if _is_aside(posixpath.basename(path)) or path == folder.rstrip("/"):
            continue
        if not _is_folder(filesystem, entry):
            yield path
        elif depth != 1:
            yield from _files_below(filesystem, path, None if depth is None else depth - 1)


def _is_folder(filesystem: Any, entry: dict[str, Any]) -> bool:
    path = entry["name"]
    if entry["type"] in ("directory", "file"):
        return bool(entry["type"] == "directory")
    if not filesystem.isdir(path):
        return False
    parent, target = posixpath.realpath(posixpath.dirname(path)), posixpath.realpath(path)
    if f"{parent}/".startswith(f"{target}/"):
        raise ConfigError(f"data {path}: the link leads back to a folder that it is in")
    return True


def _file(filesystem: Any, path: str, name: str) -> InputFile:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"data {name!r}: the file's name is no text; rename it") from error
    return InputFile(filesystem, path, name)


def _is_aside(name: str) -> bool:
    return name.startswith(".") or name.endswith((REJECTED_SUFFIX, PROVENANCE_SUFFIX))


def _suffix(path: str) -> str:
    """The last suffix that does not name a compression: `.jsonl` of `a.jsonl.gz`."""
    stem, suffix = posixpath.splitext(path.lower())
    return posixpath.splitext(stem)[1] if infer_compression(path) else suffix


def _name(filesystem: Any, path: str) -> str:
    if isinstance(filesystem, LocalFileSystem):
        return path
    url = str(filesystem.unstrip_protocol(path))
    # A key that S3 has may hold ? and #; elsewhere a query begins there, which may be secret.
    return url if _is_s3(filesystem) else without_credentials(url)


def _is_s3(filesystem: Any) -> bool:
    protocols = filesystem.protocol
    names = [protocols] if isinstance(protocols, str) else protocols
    return any(name in S3_PROTOCOLS for name in names)
