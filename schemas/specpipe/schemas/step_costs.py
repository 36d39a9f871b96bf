"""Costs of decoding rounds, from timed steps of an engine."""

from collections.abc import Sequence

from specpipe.schemas.records.served import StepTime


def plain_seconds(times: Sequence[StepTime], batch_size: int) -> float:
    """Of a step that drafts nothing, without a drafter or with one that only follows the text.

    A drafter that only follows costs something: an engine without one that seems slower was timed
    while the machine was.
    """
    return min(
        time.seconds_per_step
        for time in times
        if time.batch_size == batch_size and not time.num_draft_tokens
    )


def relative_rounds(times: Sequence[StepTime], batch_size: int, plain: float) -> dict[int, float]:
    """By number of draft tokens, in steps of `plain` seconds."""
    return {
        time.num_draft_tokens: time.seconds_per_step / plain
        for time in times
        if time.batch_size == batch_size and time.num_draft_tokens is not None
    }
