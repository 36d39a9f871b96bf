"""Progress messages: the number of tokens that a target has written so far."""

from specpipe.stages.process.activity import Seldom


class Tally:
    """Counts tokens and turns while they are written, and reports them once a second."""

    def __init__(self, num_turns: int) -> None:
        self._num_turns = num_turns
        self._num_tokens = self._num_ended = 0
        self._seldom = Seldom()

    def add(self, *, num_tokens: int, num_ended: int = 0) -> None:
        """More tokens are written, and more turns have ended."""
        self._num_tokens += num_tokens
        self._num_ended += num_ended
        self.tell()

    def tell(self, num_unfinished: int = 0) -> None:
        """`num_unfinished`: tokens of turns that have not ended, where they are not added yet."""
        self._seldom.doing(
            lambda: (
                f"the target writes: {self._num_tokens + num_unfinished:,} tokens of this shard,"
                f" {self._num_ended:,} of {self._num_turns:,} turns ended"
            )
        )
