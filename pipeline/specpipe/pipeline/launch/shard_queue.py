"""Queue of the shards that workers make; a shard whose worker died goes back into it."""

from collections import deque
from collections.abc import Callable, Sequence

from specpipe.pipeline.terminal.console import note
from specpipe.schemas.errors import UnfinishedError

MOST_LOSSES = 3
"""Workers that may die one after the other without a shard being finished in between."""


class ShardQueue:
    """Hands out each shard until a worker has finished it."""

    def __init__(self, shard_ids: Sequence[int], advance: Callable[[int], None]) -> None:
        """`advance` takes tokens that are done; less than none where their worker is lost."""
        self._waiting = deque(shard_ids)
        self._reported: dict[int, int] = {}
        self._advance = advance
        self._losses = 0

    def next(self) -> int | None:
        """A shard for a worker that is free; None where all are finished or in work."""
        if not self._waiting:
            return None
        shard_id = self._waiting.popleft()
        self._reported[shard_id] = 0
        return shard_id

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._reported

    def report(self, shard_id: int, num_tokens: int) -> None:
        self._reported[shard_id] += num_tokens
        self._advance(num_tokens)

    def finish(self, shard_id: int) -> None:
        del self._reported[shard_id]
        self._losses = 0

    def lose(self, worker: str, shard_id: int | None, reason: str) -> None:
        """A worker died; another one does its shard, after the others that wait.

        Raises UnfinishedError where too many died in a row.
        """
        at = ""
        if shard_id is not None:
            self._advance(-self._reported.pop(shard_id))
            self._waiting.append(shard_id)
            at = f" at shard {shard_id}"
        self._losses += 1
        if self._losses > MOST_LOSSES:
            raise UnfinishedError(
                f"{self._losses} workers died without finishing a shard in between, the last one "
                f"({worker}){at}: {reason}; use fewer --workers or a smaller --batch-tokens if "
                "memory is short, and run the same command again to continue"
            )
        note(f"{worker} died{at}: {reason}; another one takes over")
