"""FILE.provenance.json: the inputs, settings and counts of a file of `specpipe prepare`."""

import json
from typing import Any

from pydantic import ValidationError

from specpipe.schemas.base import Record
from specpipe.schemas.errors import IntegrityError
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.text.input.files import PROVENANCE_SUFFIX
from specpipe.stages.untrusted.json_text import parse_object

_PREPARED = "prepared"


class PreparedCounts(Record):
    """Counts of samples in a prepared file, and of inputs that were left out."""

    num_samples: int
    num_tokens: int
    num_supervised: int
    num_rejected: int
    """Inputs that were refused."""
    num_truncated: int
    """Samples that were cut to the context length."""
    num_left_out: int
    """Samples of which the context length left nothing supervised."""
    num_partly_masked: int
    """Conversations of which some assistant turns are not supervised."""


class PreparedRecord(Record):
    """The record by which a later run recognises the file and its inputs."""

    stamp: str
    """Of the settings, the target's files and the input files; see dump_plan/stamp.py."""
    num_bytes: int
    """Of the file."""
    counts: PreparedCounts


def write_record(folder: Folder, name: str, record: PreparedRecord, about: dict[str, Any]) -> None:
    """The record, and beside it `about`: settings, versions, command line."""
    values = {_PREPARED: record.model_dump(mode="json"), **about}
    folder.write(name + PROVENANCE_SUFFIX, (json.dumps(values, indent=2) + "\n").encode())


def read_record(folder: Folder, name: str) -> PreparedRecord | None:
    """None where there is none, or one that cannot be read."""
    if not folder.exists(name + PROVENANCE_SUFFIX):
        return None
    try:
        values = parse_object(folder.read(name + PROVENANCE_SUFFIX), name)
        return PreparedRecord.model_validate(values[_PREPARED])
    except (IntegrityError, ValidationError, KeyError):
        return None
