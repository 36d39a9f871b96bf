"""What the runs say, as Markdown: tau with its spread over seeds, and paired differences."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scripts.losses.matrix import CAPACITIES, CHOICES, LOSSES, SEEDS

_CURVES = {"temperature 1": "replay_temperature_1", "greedy": "replay_greedy"}
# Student's t for a two-sided interval of 95 %, by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

Results = dict[str, dict[str, Any]]
"""`best` of result.json by the name of the run and the held-out text."""


def read_results(out: Path) -> Results:
    found: Results = {}
    for path in sorted(out.glob("*/result.json")):
        found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))["best"]
    for path in sorted(out.glob("*/greedy.json")):
        found[f"{path.parent.name} greedy"] = json.loads(path.read_text(encoding="utf-8"))
    return found


def print_tables(results: Results, materials: Sequence[str]) -> None:
    _losses(results, materials)
    _pair(results, materials, "previous", "lk_hybrid", "lambda of the step before, against exact")
    _pair(results, materials, "survival", "lk_hybrid", "heads by survival, against 0.8^(k-1)")
    _pair(results, materials, "mass-256", "count-256", "D = 256 by mass, against by count")


def _losses(results: Results, materials: Sequence[str]) -> None:
    columns = ["target", "capacity", "text", *LOSSES, *(f"{loss} / kl" for loss in LOSSES[1:])]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for material in materials:
        for capacity in CAPACITIES:
            for text in _CURVES:
                taus = {loss: _taus(results, material, capacity, loss, text) for loss in LOSSES}
                if not all(taus.values()):
                    continue
                kl = taus["kl"]
                cells = [f"{mean(t):.3f}" for t in taus.values()]
                cells += [_gain(taus[loss], kl) for loss in LOSSES[1:]]
                print(f"| {material} | {capacity} | {text} | {' | '.join(cells)} |")


def _pair(results: Results, materials: Sequence[str], ours: str, other: str, title: str) -> None:
    rows = []
    for material in materials:
        for text in _CURVES:
            a = _taus(results, material, "full", ours, text)
            b = _taus(results, material, "full", other, text)
            if a and b:
                rows.append(
                    f"| {material} | {text} | {mean(b):.3f} | {mean(a):.3f} | {_gain(a, b)} |"
                )
    if rows:
        print(f"\n{title}\n\n| target | text | {other} | {ours} | gain |\n|---|---|---|---|---|")
        print("\n".join(rows))


def _taus(results: Results, material: str, capacity: str, choice: str, text: str) -> list[float]:
    """tau with all heads, by seed; empty where a run is missing."""
    assert choice in CHOICES
    found = []
    for seed in SEEDS:
        name = f"{material}-{capacity}-{choice}-{seed}" + (" greedy" if text == "greedy" else "")
        if name not in results:
            return []
        found.append(float(results[name][_CURVES[text]]["tau"][-1]))
    return found


def _gain(ours: Sequence[float], other: Sequence[float]) -> str:
    """Mean of the paired relative differences in percent, with its 95 % interval over seeds."""
    gains = [100 * (a / b - 1) for a, b in zip(ours, other, strict=True)]
    half = _T95[len(gains) - 1] * stdev(gains) / math.sqrt(len(gains))
    return f"{mean(gains):+.2f} % ± {half:.2f}"
