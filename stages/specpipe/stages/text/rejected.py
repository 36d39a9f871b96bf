"""Inputs that were refused or truncated: rejected.jsonl, and when there are too many of them."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from specpipe.schemas.errors import InputError, IntegrityError
from specpipe.schemas.location import without_credentials
from specpipe.schemas.records.dump import REJECTED_FILE, DumpIndex
from specpipe.schemas.records.sample import Source
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.objects import read_object

_NUM_NAMED = 5


@dataclass(frozen=True, slots=True)
class Rejection:
    """One input that is not in the dump as it was given.

    `refused` counts against `max_rejected`; `truncated` and, where nothing supervised is left,
    `left_out` follow from the context length; of a conversation that is `partly_masked` some
    assistant turns are not supervised.
    """

    source: Source
    kind: Literal["refused", "truncated", "left_out", "partly_masked"]
    reason: str


class Rejections:
    """What was rejected so far; raises InputError as soon as more than `limit` are refused."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.of_input: list[Rejection] = []
        """Refused or truncated before the target ran."""
        self._refused: list[str] = []

    def refuse(self, source: Source, reason: str) -> None:
        """An input that is malformed; `reason` names its source."""
        self.of_input.append(Rejection(source, "refused", reason))
        self._count(reason)

    def truncate(self, source: Source, reason: str) -> None:
        """A sample that is cut to the context length."""
        self.of_input.append(Rejection(source, "truncated", reason))

    def leave_out(self, source: Source, reason: str) -> None:
        """A sample that the context length leaves nothing supervised of."""
        self.of_input.append(Rejection(source, "left_out", reason))

    def mask(self, source: Source, reason: str) -> None:
        """A conversation of which some assistant turns are not supervised."""
        self.of_input.append(Rejection(source, "partly_masked", reason))

    def lose(self, source: Source, reason: str) -> None:
        """A sample that the target gives no usable states for.

        Its shard is committed without it, which is how finalise and later runs know of it.
        """
        self._count(f"{source}: {reason}")

    def nothing_left(self, what: str, urls: Iterable[str]) -> InputError:
        """Why no sample or prompt is left of the input."""
        reasons = "; ".join(rejection.reason for rejection in self.of_input[:_NUM_NAMED])
        shown = ", ".join(map(without_credentials, urls))
        return InputError(f"no {what} is left of {shown}: {reasons}")

    def _count(self, reason: str) -> None:
        self._refused.append(reason)
        if len(self._refused) <= self.limit:
            return
        named = "; ".join(self._refused[:_NUM_NAMED])
        if self.limit == 0:
            raise InputError(f"{named} (--max-rejected N goes on without N such inputs)")
        raise InputError(f"more than {self.limit} inputs refused (--max-rejected): {named}")


def from_jsonl(text: str) -> list[Rejection]:
    # Not splitlines, which also cuts at the other line ends that a reason may hold (U+2028).
    rows = [json.loads(line) for line in text.split("\n") if line]
    return [Rejection(Source(**row["source"]), row["kind"], row["reason"]) for row in rows]


def read_listed_rejections(folder: Folder, index: DumpIndex) -> list[Rejection]:
    """Those of a complete dump; raises IntegrityError where its rejected.jsonl is damaged."""
    listed = [read_object(folder, entry) for entry in index.objects if entry.key == REJECTED_FILE]
    try:
        return from_jsonl(b"".join(listed).decode())
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(
            f"{folder.where(REJECTED_FILE)} has a line without source (file, line), kind and "
            "reason; remove it and run `specpipe dump` again"
        ) from None


def count_kinds(jsonl: bytes) -> Counter[str]:
    """How many rejections of each kind a rejected.jsonl holds."""
    return Counter(json.loads(line)["kind"] for line in jsonl.splitlines())


def to_jsonl(rejections: Iterable[Rejection]) -> bytes:
    lines = [
        json.dumps(
            {
                "source": {"file": rejection.source.file, "line": rejection.source.line},
                "kind": rejection.kind,
                "reason": rejection.reason,
            },
            ensure_ascii=False,
        )
        for rejection in rejections
    ]
    return "".join(f"{line}\n" for line in lines).encode()
