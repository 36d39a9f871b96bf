"""Does `specpipe choose` rank drafters as the engine does when they are fully trained?

    python -m scripts.serving.chosen --out runs/chosen [--budget 1000steps] [--max-steps 1000]

On the sample target and its own text: `choose` by short trainings; then each drafter is trained
whole and `serve` measures its rounds. Every step does nothing where its result lies there already.
"""

import json
from pathlib import Path

import click

from scripts.bench.table import table
from scripts.commands import specpipe
from scripts.material import make_dumps, sample_material
from specpipe.schemas.drafters.registry import KINDS
from specpipe.schemas.records.artifact import VALIDATION_FILE
from specpipe.schemas.records.choose import RESULT_FILE, ChooseResult, Compared
from specpipe.schemas.speedup import Recommendation

BATCH_SIZES = (1, 8)
DRAFT_TOKENS = (1, 3, 5)
HEADER = (
    "batch size", "drafter", "draft tokens", "predicted by choose", "its rank", "measured there",
    "measured at best", "measured rank",
)  # fmt: skip


def train(out: Path, drafter: str, max_steps: int) -> None:
    dump = out / "dump-Llama"
    specpipe(
        out / f"{drafter}.log", "train", "--drafter", drafter, "--dump", f"{dump}-train",
        "--eval-dump", f"{dump}-held_out", "--out", out / drafter,
        "--num-heads", max(DRAFT_TOKENS), "--max-steps", max_steps,
    )  # fmt: skip


def serve(out: Path, drafter: str, prompts: int) -> Recommendation:
    """What the engine measured of a trained drafter."""
    artifact = out / f"{drafter}-artifact"
    specpipe(
        out / f"{drafter}.log", "export", "--checkpoint", out / drafter, "--out", artifact,
        "--validation", "structure,replay,serve", "--serve-prompts", prompts,
        "--serve-batch-sizes", ",".join(map(str, BATCH_SIZES)),
        "--serve-speculative-tokens", ",".join(map(str, DRAFT_TOKENS)),
    )  # fmt: skip
    found = json.loads((artifact / VALIDATION_FILE).read_text("utf-8"))["recommendation"]
    return Recommendation.model_validate(found)


def _predicted(one: Compared, size: int) -> list[float]:
    """Speed-ups at the numbers of draft tokens that are served."""
    [at_size] = [found for found in one.speedups if found.cost.batch_size == size]
    return [at_size.expected[number - 1] for number in DRAFT_TOKENS]


def _measured(advice: Recommendation, size: int) -> list[float]:
    [at_size] = [found for found in advice.speedups if found.cost.batch_size == size]
    return [at_size.measured[number] for number in DRAFT_TOKENS]


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
    make_dumps(out, sample_material("Llama"), 1, ("train", "held_out"), (*KINDS,))
    specpipe(
        out / "choose.log", "choose", "--dump", out / "dump-Llama-train",
        "--eval-dump", out / "dump-Llama-held_out", "--out", out / "choice", "--budget", budget,
        "--num-heads", max(DRAFT_TOKENS), "--serve-batch-sizes", ",".join(map(str, BATCH_SIZES)),
    )  # fmt: skip
    result = ChooseResult.model_validate_json((out / "choice" / RESULT_FILE).read_bytes())
    compared = {one.drafter: one for one in result.compared if one.speedups}
    for name in compared:
        train(out, name, max_steps)
    # One after the other, with nothing beside them: they are timed.
    served = {name: serve(out, name, prompts) for name in compared}
    rows = []
    for size in BATCH_SIZES:
        predicted = {name: _predicted(one, size) for name, one in compared.items()}
        measured = {name: _measured(advice, size) for name, advice in served.items()}
        by_choose = _ranks({name: max(values) for name, values in predicted.items()})
        by_serve = _ranks({name: max(values) for name, values in measured.items()})
        for name, rank in by_choose.items():
            best = predicted[name].index(max(predicted[name]))
            rows.append(
                (
                    str(size),
                    name,
                    str(DRAFT_TOKENS[best]),
                    f"{predicted[name][best]:.2f}",
                    str(rank),
                    f"{measured[name][best]:.2f}",
                    f"{max(measured[name]):.2f}",
                    str(by_serve[name]),
                )
            )
    table(HEADER, rows)


if __name__ == "__main__":
    main()
