"""The figures beside the progress of training: loss, tau, speed, data wait, memory."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from specpipe.pipeline.terminal.console import file_size

WINDOW_STEPS = 20
"""Steps over which speed and data wait are taken."""


@dataclass(slots=True)
class TrainProgress:
    """Shows the figures of the training loop (stages/train/loop.py) as text, step by step."""

    progress: Callable[[int, int, str], None]
    _latest: dict[str, float] = field(default_factory=dict)
    _steps: deque[tuple[float, float, float]] = field(
        default_factory=lambda: deque(maxlen=WINDOW_STEPS)
    )
    """Tokens, seconds and seconds of waiting for data."""

    def __call__(self, step: int, total_steps: int, figures: dict[str, float]) -> None:
        self._latest |= figures
        if "seconds" in figures:
            self._steps.append((figures["tokens"], figures["seconds"], figures["data_wait"]))
        self.progress(step, total_steps, self.text())

    def text(self) -> str:
        """loss 3.212 tau 1.653 12.3k tokens/s wait 0.5% 1.2 GiB"""
        parts = [f"{name} {self._latest[name]:.3f}" for name in ("loss", "tau") if self._has(name)]
        if self._steps:
            tokens, seconds, waited = map(sum, zip(*self._steps, strict=True))
            parts.append(f"{_thousands(tokens / seconds)} tokens/s")
            parts.append(f"wait {waited / seconds:.1%}")
        if self._has("memory_mib"):
            parts.append(file_size(self._latest["memory_mib"] * 2**20))
        return "  ".join(parts)

    def _has(self, name: str) -> bool:
        return name in self._latest


def _thousands(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 10_000 else f"{number:,.0f}"


class TrialFigures:
    """Shows how far the search is, and how the run goes that is trained now."""

    def __init__(self, report: Callable[[int, int, str], None]) -> None:
        self._report, self._what = report, ""
        self._run = TrainProgress(lambda *_: None)

    def __call__(self, done: int, total: int, what: str, figures: dict[str, float]) -> None:
        if what != self._what:
            self._what, self._run = what, TrainProgress(lambda *_: None)
        self._run(0, 0, figures)
        self._report(done, total, f"{what}  {self._run.text()}")
