"""tau against the tokens trained on, from the rows of a run's metrics.jsonl."""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError as PydanticError

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.checkpoint import METRICS_FILE
from specpipe.schemas.records.metrics import ReplayCurve
from specpipe.stages.runs.metric_rows import Row
from specpipe.stages.untrusted.foreign import first_bad_field


@dataclass(frozen=True, slots=True)
class TauAt:
    """tau of one evaluation with all draft tokens, and the tokens trained on before it."""

    step: int
    num_tokens: int
    tau: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TauByTokens:
    """tau over a run. It shows one training, whose learning rate changes on the way."""

    evaluations: list[TauAt]
    pass_tokens: int | None
    """Of the first pass over the data; None where the run did not get to a second."""


def tau_by_tokens(rows: Iterable[Row], curve: str) -> TauByTokens:
    """By the replay `curve`: replay_temperature_1 or replay_greedy. Raises IntegrityError where an
    evaluation lacks it."""
    evaluations: list[TauAt] = []
    num_tokens, pass_tokens = 0, None
    for row in rows:
        if "eval" in row:
            tau, low, high = _last(row["eval"], curve)
            evaluations.append(TauAt(int(row["step"]), num_tokens, tau, low, high))
        elif "tokens" in row:
            if row["epoch"] > 0 and pass_tokens is None:
                pass_tokens = num_tokens
            num_tokens += int(row["tokens"])
    return TauByTokens(evaluations, pass_tokens)


def _last(evaluation: Row, curve: str) -> tuple[float, float, float]:
    """tau with all draft tokens, and its interval."""
    try:
        replayed = ReplayCurve.model_validate(evaluation.get(curve))
    except PydanticError as error:
        raise IntegrityError(
            f"{METRICS_FILE} is damaged: an evaluation's {curve} is none ({first_bad_field(error)})"
        ) from None
    return replayed.tau[-1], replayed.tau_low[-1], replayed.tau_high[-1]
