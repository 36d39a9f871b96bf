"""Input files -> checked samples, in order, duplicates merged."""

import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import fsspec
from fsspec.core import has_magic
from fsspec.utils import infer_compression

from specpipe.schemas.errors import ConfigError, InputError, StoreError
from specpipe.schemas.location import without_credentials
from specpipe.schemas.sample import Sample, Source, make_sample, sample_from_pretokenized
from specpipe.stages.dump.conversation import ChatTemplate
from specpipe.stages.dump.rejected import Rejections

_DECOMPRESSION_ERRORS = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    NotImplementedError,  # a zip's method
    RuntimeError,  # a zip with a password
    IndexError,  # a zip without a file
)

_MESSAGES = "messages"
_PRETOKENIZED = "input_ids"


def input_files(urls: Sequence[str]) -> list[tuple[Any, str, str]]:
    """(filesystem, path, name for messages) of each file; globs are expanded in sorted order.

    Raises ConfigError for what does not exist or is a folder.
    """
    files: list[tuple[Any, str, str]] = []
    for url in urls:
        shown = without_credentials(url)
        try:
            filesystem, path = fsspec.url_to_fs(url)
            if has_magic(path):
                paths = sorted(filesystem.glob(path))
                if not paths:
                    raise ConfigError(f"data {shown}: nothing matches")
                files += [(filesystem, found, without_credentials(found)) for found in paths]
                continue
            if filesystem.isdir(path):
                raise ConfigError(f"data {shown}: a folder; name its files ({shown}/*.jsonl)")
            if not filesystem.exists(path):
                raise ConfigError(f"data {shown}: no such file")
        except OSError as error:
            raise StoreError(f"data {shown}: {error}") from error
        except (ImportError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"data {shown}: {error}") from error
        files.append((filesystem, path, shown))
    return files


def read_samples(
    urls: Sequence[str],
    template: ChatTemplate,
    vocab_size: int,
    context_length: int,
    rejections: Rejections,
) -> list[Sample]:
    """All accepted samples in input order; a sample that occurs again adds to the multiplicity.

    Raises InputError for a file without samples, and as soon as too many rows are refused.
    """
    merged: dict[str, Sample] = {}
    multiplicity: dict[str, int] = {}
    for filesystem, path, name in input_files(urls):
        first_kind: str | None = None
        num_rows = 0
        for source, line in _lines(filesystem, path, name):
            num_rows += 1
            try:
                row = _parse(line, source)
                kind = _kind(row, source, first_kind)
                sample = (
                    template.sample(row, source, vocab_size)
                    if kind == _MESSAGES
                    else sample_from_pretokenized(row, source, vocab_size)
                )
            except InputError as error:
                rejections.refuse(source, str(error))
                continue
            first_kind = kind
            kept = _truncated(sample, vocab_size, context_length, rejections)
            if kept is not None:
                sample_id = kept.sample_id
                merged.setdefault(sample_id, kept)
                multiplicity[sample_id] = multiplicity.get(sample_id, 0) + 1
        if num_rows == 0:
            raise InputError(f"{name}: the file is empty")
    if not merged:
        raise InputError(f"no sample is left of {', '.join(map(without_credentials, urls))}")
    return [
        replace(sample, multiplicity=multiplicity[sample_id])
        for sample_id, sample in merged.items()
    ]


def _lines(filesystem: Any, path: str, name: str) -> Iterator[tuple[Source, bytes]]:
    try:
        with filesystem.open(path, "rb", compression="infer") as file:
            for number, line in enumerate(file, start=1):
                yield Source(name, number), line
    except (*_DECOMPRESSION_ERRORS, OSError) as error:
        compression = infer_compression(path)
        # A store's errors have a number; gzip and bz2 raise an OSError without one.
        if compression is None or (isinstance(error, OSError) and error.errno is not None):
            raise StoreError(f"{name}: {error}") from error
        raise InputError(
            f"{name}: not a readable {compression} file: it is truncated or damaged ({error})"
        ) from error


def _parse(line: bytes, source: Source) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 (byte {error.start})") from error
    if not text.strip():
        raise InputError(f"{source}: a blank line")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only JSONDecodeError: Python refuses integers of more than 4300 digits.
        raise InputError(f"{source}: malformed JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{source}: a JSON {type(row).__name__}, not an object")
    return row


def _kind(row: dict[str, Any], source: Source, first_kind: str | None) -> str:
    """Which kind of row it is; all rows of a file are of one kind."""
    kinds = [kind for kind in (_MESSAGES, _PRETOKENIZED) if kind in row]
    if len(kinds) != 1:
        what = "both 'messages' and 'input_ids'" if kinds else "neither 'messages' nor 'input_ids'"
        raise InputError(f"{source}: the object has {what}")
    if first_kind is not None and kinds[0] != first_kind:
        raise InputError(
            f"{source}: has {kinds[0]!r} but the rows before have {first_kind!r}; "
            "give the two kinds in files of their own"
        )
    return kinds[0]


def _truncated(
    sample: Sample, vocab_size: int, context_length: int, rejections: Rejections
) -> Sample | None:
    """The sample within the context length; None if nothing supervised is left of it."""
    if sample.num_tokens <= context_length:
        return sample
    cut = f"{sample.source}: {sample.num_tokens} tokens cut to the context length {context_length}"
    ids, mask = sample.input_ids[:context_length], sample.loss_mask[:context_length]
    if not mask[1:].any():
        rejections.leave_out(sample.source, f"{cut}: nothing supervised is left, left out")
        return None
    rejections.truncate(sample.source, cut)
    return make_sample(ids, mask, sample.source, vocab_size, sample.metadata)
