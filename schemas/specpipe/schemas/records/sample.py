"""One input sample: token ids with a loss mask, its identity, and the rule for holding it out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from specpipe.schemas.errors import InputError

IGNORE_LABEL = -100

_SHORTEST_PROMPT = 2

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a sample came from, for messages: a file and its 1-based line or row."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenised sample.

    `input_ids` is int32 [T]; `loss_mask` is uint8 [T], 1 where the token is supervised.
    `multiplicity` counts how often the same sample stood in the input.
    """

    input_ids: Ids
    loss_mask: Mask
    source: Source
    multiplicity: int = 1
    metadata: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 0
    """Most tokens that the target is to add; 0 for text that is given."""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def sample_id(self) -> str:
        """Hash of the token ids and the mask."""
        return digest(self.input_ids, self.loss_mask)

    @property
    def prompt_id(self) -> str:
        """Hash of the tokens before the first supervised one.

        Fewer than two of them (a BOS alone) are no prompt, and would put all samples on one side
        of the split: then it is the hash of the whole sample.
        """
        start = first_supervised(self.loss_mask)
        return digest(self.input_ids[:start]) if start >= _SHORTEST_PROMPT else self.sample_id

    @property
    def verifier_rows(self) -> npt.NDArray[np.int64]:
        return verifier_rows(self.loss_mask)


def digest(*parts: npt.NDArray[Any] | bytes) -> str:
    """Hash of bytes and of arrays' values: 32 hexadecimal digits."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return whole.hexdigest()[:32]


def first_supervised(loss_mask: Mask) -> int:
    """Index of the first supervised token; the length of the mask when there is none."""
    return int(loss_mask.argmax()) if loss_mask.any() else len(loss_mask)


def verifier_rows(loss_mask: Mask) -> npt.NDArray[np.int64]:
    """Positions j whose next token x[j+1] is supervised, ascending: int64 [S]."""
    return np.flatnonzero(loss_mask[1:])


def is_held_out(prompt_id: str, fraction: float) -> bool:
    """Whether samples with this prompt are held out, so that siblings never straddle the split.

    The prompt's hash, read as a number in [0, 1), is compared with `fraction`: growing the
    fraction only adds samples to the held-out side.
    """
    return int(prompt_id[:16], 16) / 2**64 < fraction


def is_in_share(prompt_id: str, fraction: float) -> bool:
    """Whether samples with this prompt are in a share of the data: of a larger one they are too.

    Another part of the hash than `is_held_out` looks at, so that the two have nothing in common.
    """
    return int(prompt_id[16:], 16) / 2**64 < fraction


def sample_from_pretokenized(row: dict[str, Any], source: Source, vocab_size: int) -> Sample:
    """A sample from `input_ids`, `attention_mask` and `labels` as the spec-draft API defines them.

    The fields are lists of integers or int64 arrays. Trailing and leading padding (attention_mask
    0) is cut. Raises InputError, naming file and line, where a field is missing or of another type,
    lengths differ, the attention mask has a hole, a token id is outside the vocabulary, or a label
    is neither its token nor -100.
    """
    ids, mask = attended(row, source)
    return make_sample(ids, mask, source, vocab_size)


def attended(
    row: dict[str, Any], source: Source
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The token ids that are attended to, and which of them are supervised."""
    ids = _integers(row, "input_ids", source)
    labels = _integers(row, "labels", source)
    attention = _integers(row, "attention_mask", source)
    if not len(ids) == len(labels) == len(attention):
        raise InputError(
            f"{source}: input_ids, attention_mask and labels have {len(ids)}, {len(attention)} and "
            f"{len(labels)} entries; they must be equally long"
        )
    if not np.isin(attention, (0, 1)).all():
        raise InputError(f"{source}: attention_mask holds something other than 0 and 1")
    places = np.flatnonzero(attention)
    if len(places) == 0:
        raise InputError(f"{source}: no token is attended to")
    start, stop = int(places[0]), int(places[-1]) + 1
    if len(places) != stop - start:
        raise InputError(f"{source}: attention_mask has a hole; split the sample there")
    ids, labels = ids[start:stop], labels[start:stop]
    wrong = np.flatnonzero((labels != IGNORE_LABEL) & (labels != ids))
    if len(wrong):
        at = int(wrong[0])
        raise InputError(
            f"{source}: labels[{start + at}] is {labels[at]} but input_ids[{start + at}] is "
            f"{ids[at]}; a label is its own token, or {IGNORE_LABEL} (labels are not shifted)"
        )
    return ids, labels != IGNORE_LABEL


def make_sample(
    ids: Sequence[int] | npt.NDArray[Any],
    loss_mask: Sequence[int] | npt.NDArray[Any],
    source: Source,
    vocab_size: int,
    metadata: dict[str, Any] | None = None,
) -> Sample:
    """A checked sample; raises InputError on ids outside [0, vocab_size) or nothing to learn."""
    ids_T = checked_ids(ids, source, vocab_size)
    mask_T = np.asarray(loss_mask).astype(np.uint8)
    if not mask_T[1:].any():
        raise InputError(f"{source}: no supervised token after the first; nothing to learn from it")
    return Sample(ids_T, mask_T, source, metadata=metadata or {})


def checked_ids(ids: Sequence[int] | npt.NDArray[Any], source: Source, vocab_size: int) -> Ids:
    """The ids as int32 [T]; raises InputError on one outside [0, vocab_size)."""
    ids_T = np.asarray(ids, dtype=np.int64)
    if len(ids_T) and not (ids_T.min() >= 0 and ids_T.max() < vocab_size):
        at = int(np.flatnonzero((ids_T < 0) | (ids_T >= vocab_size))[0])
        raise InputError(
            f"{source}: token id {ids_T[at]} at index {at} is outside the target's vocabulary "
            f"of {vocab_size}; was the data tokenised for another model?"
        )
    return ids_T.astype(np.int32)


def _integers(row: dict[str, Any], key: str, source: Source) -> npt.NDArray[np.int64]:
    values = row.get(key)
    if values is None:
        raise InputError(f"{source}: field {key!r} is missing")
    if isinstance(values, np.ndarray) and values.dtype == np.int64 and values.ndim == 1:
        return values
    if not isinstance(values, list) or not all(type(v) is int for v in values):
        raise InputError(f"{source}: field {key!r} must be a list of integers")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        raise InputError(f"{source}: field {key!r} holds a number beyond 64 bits") from None
