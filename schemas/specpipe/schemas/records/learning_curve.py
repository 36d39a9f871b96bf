"""`learning_curve.json`: tau by the amount of data, and what more of it is expected to bring."""

from typing import Literal

from specpipe.schemas.base import Record

LEARNING_CURVE_FILE = "learning_curve.json"
CURVE_FOLDER = "curve"
"""Below the run directory: a run directory for each share of its data."""


class CurvePoint(Record):
    """tau of a drafter trained on a share of the data."""

    data_fraction: float
    """Of the prompts."""
    num_tokens: int
    """Different ones that it was trained on."""
    num_steps: int
    tau: float
    tau_low: float
    tau_high: float
    """95 % interval over the samples that it was evaluated on."""


class Expected(Record):
    """Expected tau of a training on a given amount of data."""

    num_tokens: int
    tau: float
    low: float
    high: float
    """95 % interval of what one such training will show."""

    def in_words(self) -> str:
        return f"{self.tau:.2f} [{self.low:.2f}, {self.high:.2f}]"


class LearningCurve(Record):
    """tau of drafters that were trained on nested shares of the data, the whole one last."""

    num_draft_tokens: int
    is_greedy: bool
    """Target and drafter are greedy; else both sample at temperature 1."""
    points: list[CurvePoint]
    """By amount."""
    answer: Literal["predicted", "open"]
    """open: the points do not say what more data would bring; `because` says why."""
    because: str = ""
    expected: list[Expected]
    """Of twice and of four times the data; none where the points cannot carry a law."""
    held_back: Expected | None = None
    """Of the whole, from the smaller shares alone."""
    law: list[Expected]
    """The fitted law itself, for a picture."""

    @property
    def is_as_predicted(self) -> bool | None:
        """Whether the whole's tau lies where the smaller shares had it; None: they are too few."""
        if self.held_back is None:
            return None
        return self.held_back.low <= self.points[-1].tau <= self.held_back.high

    def in_words(self) -> str:
        """The answer to: how much data do I need?"""
        if self.answer == "open":
            return f"cannot tell: {self.because}"
        twice, four_times = self.expected
        return (
            f"with twice the data ({twice.num_tokens:,} tokens) expect tau {twice.in_words()};"
            f" with four times {four_times.in_words()}"
        )

    def check_in_words(self) -> str | None:
        """How well the smaller shares predicted the whole."""
        if self.held_back is None:
            return None
        held = "inside" if self.is_as_predicted else "outside"
        return (
            f"the smaller shares alone say {self.held_back.in_words()} for the whole; its"
            f" training came to {self.points[-1].tau:.2f}, {held} that interval"
        )
