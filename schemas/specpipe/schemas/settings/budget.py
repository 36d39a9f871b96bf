"""A budget of a search that trains: a time, or optimiser steps."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from specpipe.schemas.settings.train import TrainConfig

_BUDGET = re.compile(r"(\d{1,12}(?:\.\d+)?) *(s|m|h|steps)?", re.ASCII)
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600}


def _budget(value: Any) -> Any:
    """`30m`, `2h`, `90s`, `2000steps`, or a number of seconds; raises ValueError for others."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:.15g}"
    if not isinstance(value, str):
        return value
    match = _BUDGET.fullmatch(value.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError("give a time, as 30m, 2h or 90s, or optimiser steps, as 2000steps")
    return value.strip()


class Budgeted(TrainConfig):
    """The settings of a search whose trials are training runs."""

    budget: Annotated[str, BeforeValidator(_budget)] = "30m"
    """What the search may take: 30m, 2h, 90s, or steps of the recipe's size, as 2000steps."""

    @property
    def budget_seconds(self) -> float | None:
        """None where the budget is in steps."""
        number, unit = self._budget_parts()
        return None if unit == "steps" else float(number) * _SECONDS[unit]

    @property
    def budget_steps(self) -> float | None:
        """None where the budget is a time."""
        number, unit = self._budget_parts()
        return float(number) if unit == "steps" else None

    def _budget_parts(self) -> tuple[str, str | None]:
        match = _BUDGET.fullmatch(self.budget)
        assert match is not None
        return match[1], match[2]
