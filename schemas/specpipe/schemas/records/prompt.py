"""A prompt that the target answers while it is dumped, and the prompt's identity."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import (
    IGNORE_LABEL,
    Ids,
    Sample,
    Source,
    attended,
    checked_ids,
    digest,
    first_supervised,
)


@dataclass(frozen=True, slots=True)
class PromptSample(Sample):
    """A sample that is not written yet: `input_ids` is its first prompt, nothing is supervised.

    `metadata` holds what its later turns need.
    """

    settings: str = ""
    """How the target is to write it, as text that differs where the settings do."""
    ordinal: int = 0
    """Which of the answers to the same prompt this one is."""

    @property
    def sample_id(self) -> str:
        """Hash of the prompt, what is said later, the settings and the ordinal.

        All that is random about the answer follows from it.
        """
        rest = [self.metadata, self.settings, self.ordinal]
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        return digest(self.input_ids, text.encode())


def make_prompt(
    ids: Ids,
    source: Source,
    *,
    settings: str,
    max_new_tokens: int,
    metadata: dict[str, Any],
) -> PromptSample:
    """The first answer to a prompt."""
    return PromptSample(
        ids,
        np.zeros(len(ids), np.uint8),
        source,
        metadata=metadata,
        max_new_tokens=max_new_tokens,
        settings=settings,
    )


def prompt_from_pretokenized(row: dict[str, Any], source: Source, vocab_size: int) -> Ids:
    """The tokens before the first supervised one, or all of them where none is; int32 [T].

    `attention_mask` and `labels` may be left out. Raises InputError as `sample_from_pretokenized`
    does.
    """
    length = len(row["input_ids"]) if hasattr(row["input_ids"], "__len__") else 0
    defaults = {"attention_mask": [1] * length, "labels": [IGNORE_LABEL] * length}
    given = {name: value for name, value in row.items() if value is not None}
    ids, is_supervised = attended(defaults | given, source)
    ids_T = checked_ids(ids, source, vocab_size)[: first_supervised(is_supervised.astype(np.uint8))]
    if len(ids_T) == 0:
        raise InputError(f"{source}: no token stands before the first supervised one: no prompt")
    return ids_T
