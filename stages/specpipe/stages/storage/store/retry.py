"""Retry an operation of a store that failed transiently, and give up after a bounded time."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    wait_random_exponential,
)

T = TypeVar("T")

_log = logging.getLogger(__name__)


class GaveUp(Exception):
    """A store kept failing; the cause is its last error."""

    def __init__(self, num_tries: int, seconds: float) -> None:
        super().__init__(f"tried {num_tries} times in {seconds:.0f} seconds")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long, and how often, an operation that fails transiently is retried."""

    patience: float = 120.0
    """Seconds after which there is no further retry."""
    least_tries: int = 5
    """Number of tries, however long they take: one of a large object may need minutes."""
    first_wait: float = 1.0
    """Upper bound of the first delay in seconds; it doubles with each retry. Each delay is random
    below its bound, so that workers that failed together do not retry together."""
    longest_wait: float = 15.0
    num_quiet: int = 3
    """Number of failures in a row before a warning."""

    def run(self, action: Callable[[], T], is_transient: Callable[[BaseException], bool]) -> T:
        """The action's result; its error if that is not transient. Raises GaveUp."""
        started = time.monotonic()
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            stop=stop_all(stop_after_attempt(self.least_tries), stop_after_delay(self.patience)),
            wait=wait_random_exponential(multiplier=self.first_wait, max=self.longest_wait),
            before_sleep=self._warn,
        )
        try:
            return retrying(action)
        except RetryError as error:
            last = error.last_attempt
            seconds = time.monotonic() - started
            raise GaveUp(last.attempt_number, seconds) from last.exception()

    def _warn(self, state: RetryCallState) -> None:
        if state.attempt_number > self.num_quiet and state.outcome is not None:
            _log.warning(
                "the store fails (%s); trying again, for %.0f seconds at most",
                type(state.outcome.exception()).__name__,
                max(0.0, self.patience - (state.seconds_since_start or 0.0)),
            )


DEFAULT_POLICY = RetryPolicy()
