"""Does `specpipe choose` rank drafters as the engine does when they are fully trained?

    python -m scripts.serving.chosen --out runs/chosen [--budget 1000steps] [--max-steps 1000]

On the sample target and its own text: `choose` by short trainings; then each drafter is trained
whole, and its tau gives a speed-up by the same step times, and one by those that `serve` measures
with it. Every step does nothing where its result lies there already.
"""

import json
from pathlib import Path
from typing import Any

import click

from scripts.bench.table import table
from scripts.commands import specpipe
from scripts.material import make_dumps, sample_material
from specpipe.pipeline.choose.judge import speedups
from specpipe.schemas.drafters.registry import KINDS
from specpipe.schemas.records.artifact import VALIDATION_FILE
from specpipe.schemas.records.choose import (
    RESULT_FILE,
    STEP_TIMES_FILE,
    ChooseResult,
    StepTimes,
)
from specpipe.schemas.speedup import Recommendation, Speedup

BATCH_SIZES = (1, 8)
DRAFT_TOKENS = (1, 3, 5)
HEADER = (
    "batch size", "drafter", "by choose", "rank", "trained whole", "rank",
    "by the step times of serve", "rank",
)  # fmt: skip


def train(out: Path, drafter: str, max_steps: int) -> None:
    dump = out / "dump-Llama"
    specpipe(
        out / f"{drafter}.log", "train", "--drafter", drafter, "--dump", f"{dump}-train",
        "--eval-dump", f"{dump}-held_out", "--out", out / drafter,
        "--num-heads", max(DRAFT_TOKENS), "--max-steps", max_steps,
    )  # fmt: skip


def serve(out: Path, drafter: str, prompts: int) -> dict[str, Any]:
    """What validation found of a trained drafter, in the engine too."""
    artifact = out / f"{drafter}-artifact"
    specpipe(
        out / f"{drafter}.log", "export", "--checkpoint", out / drafter, "--out", artifact,
        "--validation", "structure,replay,serve", "--serve-prompts", prompts,
        "--serve-batch-sizes", ",".join(map(str, BATCH_SIZES)),
        "--serve-speculative-tokens", ",".join(map(str, DRAFT_TOKENS)),
    )  # fmt: skip
    found: dict[str, Any] = json.loads((artifact / VALIDATION_FILE).read_text("utf-8"))
    return found


def _best(found: list[Speedup], size: int) -> float:
    [at_size] = [one for one in found if one.cost.batch_size == size]
    return max(at_size.expected)


def _ranks(values: dict[str, float]) -> dict[str, int]:
    order = sorted(values, key=values.__getitem__, reverse=True)
    return {name: rank for rank, name in enumerate(order, start=1)}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/prove/chosen"))
@click.option("--budget", default="1000steps", show_default=True, help="Of specpipe choose.")
@click.option("--max-steps", default=1000, show_default=True, help="Of each whole training.")
@click.option("--prompts", default=60, show_default=True)
def main(out: Path, budget: str, max_steps: int, prompts: int) -> None:
    """Print both rankings in one table."""
    out.mkdir(parents=True, exist_ok=True)
    make_dumps(out, sample_material("Llama"), 1, ("train", "held_out"), ("--for", ",".join(KINDS)))
    specpipe(
        out / "choose.log", "choose", "--dump", out / "dump-Llama-train",
        "--eval-dump", out / "dump-Llama-held_out", "--out", out / "choice", "--budget", budget,
        "--num-heads", max(DRAFT_TOKENS), "--serve-batch-sizes", ",".join(map(str, BATCH_SIZES)),
    )  # fmt: skip
    choice = out / "choice"
    result = ChooseResult.model_validate_json((choice / RESULT_FILE).read_bytes())
    times = StepTimes.model_validate_json((choice / STEP_TIMES_FILE).read_bytes())
    compared = {one.drafter: one for one in result.compared if one.speedups}
    for name in compared:
        train(out, name, max_steps)
    # One after the other, with nothing beside them: they are timed.
    whole, measured = {}, {}
    for name, one in compared.items():
        found = serve(out, name, prompts)
        tau = found["replay"]["artifact"][one.replay]["tau"]
        whole[name] = speedups(times, name, tau, parallel=one.is_parallel)
        measured[name] = Recommendation.model_validate(found["recommendation"])
    rows = []
    for size in BATCH_SIZES:
        columns = [
            {name: _best(one.speedups, size) for name, one in by_name.items()}
            for by_name in (compared, measured)
        ]
        columns.insert(1, {name: _best(found, size) for name, found in whole.items()})
        ranks = [_ranks(column) for column in columns]
        for name in ranks[0]:
            pairs = zip(columns, ranks, strict=True)
            cells = [cell for by, rank in pairs for cell in (f"{by[name]:.2f}", str(rank[name]))]
            rows.append((str(size), name, *cells))
    table(HEADER, rows)


if __name__ == "__main__":
    main()
