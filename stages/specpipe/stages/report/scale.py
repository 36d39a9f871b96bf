"""Axis scales: from values to pixels, with ticks at round numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "whole", "log2", "log10"]
"""whole: ticks at whole numbers only; log2: ticks at powers of two; log10: at 1, 2, 5, 10, ..."""

_LOGARITHMIC: frozenset[Kind] = frozenset({"log2", "log10"})

_MOST_TICKS = 6


@dataclass(frozen=True, slots=True)
class Scale:
    """Values low..high on the pixels begin..end (begin may be the larger: y goes down)."""

    kind: Kind
    low: float
    high: float
    begin: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The pixel of a value, which may lie outside."""
        low, high, value = (self._straight(x) for x in (self.low, self.high, value))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def _straight(self, value: float) -> float:
        return math.log2(value) if self.kind in _LOGARITHMIC else value


def scale_of(
    values: Sequence[float],
    kind: Kind,
    begin: float,
    end: float,
    limits: tuple[float, float] | None = None,
) -> Scale:
    """A scale that holds all values; `limits` are its ends where they are known.

    Raises ValueError where there are no values; they must be finite, and positive for a logarithm.
    """
    low, high = limits or (min(values), max(values))
    if high <= low:
        low, high = (low / 2, low * 2) if kind in _LOGARITHMIC else (low - 0.5, low + 0.5)
    if kind == "log2":
        ticks = _powers_of_two(low, high)
    elif kind == "log10":
        ticks = _one_two_five(low, high)
    else:
        step = _nice_step((high - low) / (_MOST_TICKS - 1))
        if kind == "whole":
            step = max(1.0, step)
        elif limits is None:
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        ticks = _multiples(step, low, high)
    return Scale(kind, low, high, begin, end, ticks)


def _nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))


def _multiples(step: float, low: float, high: float) -> tuple[float, ...]:
    first = math.ceil(low / step - 1e-9)
    return tuple(n * step for n in range(first, math.floor(high / step + 1e-9) + 1))


def _one_two_five(low: float, high: float) -> tuple[float, ...]:
    """1, 2, 5, 10, ... times a power of ten; where fewer than two are in reach, even steps."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [n * 10.0**power for power in powers for n in (1, 2, 5)]
    found = tuple(tick for tick in ticks if low <= tick <= high)
    if len(found) < 2:
        return _multiples(_nice_step((high - low) / 4), low, high)
    return found[:: math.ceil(len(found) / _MOST_TICKS)]


def _powers_of_two(low: float, high: float) -> tuple[float, ...]:
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    stride = max(1, math.ceil(len(exponents) / _MOST_TICKS))
    return tuple(2.0**n for n in exponents[::stride])


def tick_label(value: float) -> str:
    """1,024 and 0.25: no digits that say nothing."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.6g}"
