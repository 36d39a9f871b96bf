"""Input files -> rows, each of one kind: a pretokenised sample, a conversation, or plain text."""

from collections.abc import Iterator, Sequence
from typing import Any

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import Source
from specpipe.stages.text.chat.row import CONVERSATIONS, MESSAGES, PROMPT
from specpipe.stages.text.input.files import input_files
from specpipe.stages.text.input.json_rows import json_rows
from specpipe.stages.text.input.parquet_rows import RENAME, parquet_rows
from specpipe.stages.text.plain_text import TEXT
from specpipe.stages.text.rejected import Rejections

PRETOKENIZED = "input_ids"

_KINDS = (MESSAGES, PRETOKENIZED, TEXT)
_OTHER_KINDS = (CONVERSATIONS, PROMPT)
"""Where none of the kinds above is there: data sets give them a prompt beside, or a second form."""

_NUM_NAMED = 10

Row = dict[str, Any]


def read_rows(urls: Sequence[str], rejections: Rejections) -> Iterator[tuple[Source, Row]]:
    """Every row of the input with where it stands, in order; what is no row is refused.

    Each has one of `input_ids`, `messages` and `text`, or else of `conversations` and `prompt`, the
    same one throughout a file. Raises InputError for an empty or unreadable file, and as soon as
    too many rows are refused.
    """
    for file in input_files(urls):
        first_kind: str | None = None
        is_empty = True
        for source, read in (parquet_rows if file.is_parquet else json_rows)(file):
            is_empty = False
            try:
                row = read()
                first_kind = _checked_kind(row, source, first_kind)
            except InputError as error:
                rejections.refuse(source, str(error))
                continue
            yield source, row
        if is_empty:
            raise InputError(f"{file.name}: the file is empty")


def kind_of(row: Row) -> str:
    """PRETOKENIZED, TEXT, PROMPT where that is a text, or MESSAGES for any form of conversation."""
    (kind,) = _kinds(row)
    is_chat = kind == CONVERSATIONS or (kind == PROMPT and not isinstance(row[PROMPT], str))
    return MESSAGES if is_chat else kind


def _kinds(row: Row) -> list[str]:
    kinds = [kind for kind in _KINDS if row.get(kind) is not None]
    return kinds or [kind for kind in _OTHER_KINDS if row.get(kind) is not None][:1]


def _checked_kind(row: Row, source: Source, first_kind: str | None) -> str:
    kinds = _kinds(row)
    if not kinds:
        raise InputError(
            f"{source}: neither 'messages' nor 'input_ids' nor 'text' is there, nor "
            f"'conversations' or 'prompt', but {_named(row)}; {RENAME}"
        )
    if len(kinds) > 1:
        raise InputError(f"{source}: both {kinds[0]!r} and {kinds[1]!r} are there; give one")
    if first_kind is not None and kinds[0] != first_kind:
        raise InputError(
            f"{source}: has {kinds[0]!r} but the rows before have {first_kind!r}; "
            "give the two kinds in files of their own"
        )
    return kinds[0]


def _named(row: Row) -> str:
    """The keys that a row has a value for."""
    names = [repr(name[:40]) for name, value in row.items() if value is not None]
    more = ", ..." if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more if names else "nothing"
