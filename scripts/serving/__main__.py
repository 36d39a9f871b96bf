"""Does vLLM measure what the replay predicts? Three targets, each drafter, 3 to 15 draft tokens.

    python -m scripts.serving --out runs/serving [--code runs/code] [--only 'peagle,dflash*']

The targets: the sample target (a Llama), and two that scripts/make_code_target makes (Qwen3, and
Qwen2; both with tied embeddings). Every step does nothing where its result lies there already.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from scripts.bench.table import table
from scripts.commands import fits, specpipe
from scripts.material import Material, code_material, make_dumps, sample_material
from specpipe.schemas.drafters.registry import KINDS
from specpipe.schemas.errors import ValidationError


@dataclass(frozen=True)
class Drafter:
    """What is trained, and how it is served."""

    options: tuple[str, ...]
    formats: tuple[str, ...] = ("",)
    """Those that are served; default: its first one."""
    draft_tokens: tuple[int, ...] = (3, 5, 7)
    has_draft_vocab: bool = True


def _variant(kind: str, draft_tokens: int, *options: str) -> Drafter:
    given = ("--drafter", kind, "--num-layers", "2", *options)
    return Drafter(given, ("speculators",), (draft_tokens,))


DRAFTERS = {
    "eagle3": Drafter(
        ("--config", "scripts/papers.yaml", "--learning-rate", "2e-3"), ("speculators", "eagle3")
    ),
    "peagle": Drafter(("--drafter", "peagle", "--num-layers", "2"), ("speculators", "peagle")),
    "peagle-windowed": _variant("peagle", 5, "--sliding-window", "48"),
    "peagle-15": _variant("peagle", 15),
    "dflash": Drafter(("--drafter", "dflash", "--num-layers", "2"), ("speculators", "z-lab")),
    "dflash-causal": _variant("dflash", 5, "--causal"),
    "dflash-windowed": _variant("dflash", 5, "--sliding-window", "48"),
    "dflash-15": _variant("dflash", 15),
    "eagle1": Drafter(("--drafter", "eagle1"), has_draft_vocab=False),
    "medusa": Drafter(("--drafter", "medusa"), has_draft_vocab=False),
}


def materials(code: Path, out: Path, chosen: str) -> Iterator[Material]:
    """The chosen targets with the prompts that they answer."""
    made = {"Qwen3-tied": (code, "qwen3"), "Qwen2-tied": (out / "qwen2", "qwen2")}
    if fits("Llama", chosen):
        yield sample_material("Llama")
    for name, (folder, architecture) in made.items():
        if not fits(name, chosen):
            continue
        if not (folder / "target" / "model.safetensors").exists():
            command = [sys.executable, "-m", "scripts.targets.code_target", "--out", str(folder)]
            subprocess.run([*command, "--architecture", architecture], check=True)
        yield code_material(name, folder)


def serve(
    out: Path, material: Material, name: str, max_steps: int, prompts: int, formats: int
) -> None:
    """Train a drafter, export it in its formats, and serve each with the real engine."""
    drafter = DRAFTERS[name]
    log, dump, run = (
        out / f"{material.name}-{name}.log",
        out / f"dump-{material.name}",
        out / f"{material.name}-{name}",
    )
    vocab = ("--draft-vocab-size", 1024) if drafter.has_draft_vocab else ()
    specpipe(
        log, "train", *drafter.options, "--dump", f"{dump}-train",
        "--eval-dump", f"{dump}-held_out", "--out", run,
        "--num-heads", max(drafter.draft_tokens),
        *vocab, "--batch-tokens", 2048, "--max-steps", max_steps, "--eval-every", max_steps,
    )  # fmt: skip
    for format in drafter.formats[:formats]:
        try:
            specpipe(
                log, "export", "--checkpoint", run, "--out", artifact(out, material, name, format),
                *(("--format", format) if format else ()),
                "--validation", "structure,replay,serve",
                "--serve-prompts", prompts, "--serve-batch-sizes", 1,
                "--serve-speculative-tokens", ",".join(map(str, drafter.draft_tokens)),
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            # Its table says so, and the next one is measured.
            if error.returncode != ValidationError.exit_code:
                raise
        click.echo(f"{run.name} {format} served", err=True)


def artifact(out: Path, material: Material, name: str, format: str) -> Path:
    return out / f"{material.name}-{name}-{format or 'artifact'}"


def rows(out: Path, material: Material, name: str, formats: int) -> Iterator[tuple[str, ...]]:
    """A row for each format, number of draft tokens and temperature."""
    for format in DRAFTERS[name].formats[:formats]:
        path = artifact(out, material, name, format) / "validation.json"
        served = json.loads(path.read_text("utf-8"))["serve"]
        title = f"{name} {format}".strip()
        if served is None:
            yield material.name, title, *("-",) * (len(HEADER) - 3), "NO: not served"
            continue
        for run in served["runs"]:
            for mode in ("greedy", "temperature_1"):
                start = material.name, title, str(run["num_draft_tokens"]), mode
                yield *start, *_compared(run, mode)


def _compared(run: dict[str, Any], mode: str) -> tuple[str, ...]:
    found = run[mode]
    if found is None:
        return *("-",) * (len(HEADER) - 5), "NO: not lossless"
    pairs = zip(found["acceptance_measured"], found["acceptance_replayed"], strict=True)
    return (
        f"{found['tau_measured']:.4f}",
        f"{found['tau_replayed']:.4f}",
        f"{found['relative_difference']:+.2%}",
        f"{found['relative_error_95']:.2%}",
        f"{max(abs(measured - replayed) for measured, replayed in pairs):.4f}",
        "yes" if found["passed"] else "NO",
    )


HEADER = (
    "target", "drafter", "draft tokens", "", "tau measured", "tau replayed", "difference",
    "its 95 % error", "largest of a position", "agrees, lossless",
)  # fmt: skip


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/prove/serving"))
@click.option("--code", type=click.Path(path_type=Path), default=Path("runs/code"))
@click.option("--max-steps", default=160, show_default=True)
@click.option("--prompts", default=100, show_default=True)
@click.option("--formats", default=2, show_default=True, help="Most formats of a drafter.")
@click.option("--only", default="*", show_default=True, help="Drafters whose name fits one of.")
@click.option("--targets", default="*", show_default=True, help="Targets whose name fits one of.")
def main(
    out: Path, code: Path, max_steps: int, prompts: int, formats: int, only: str, targets: str
) -> None:
    """Serve the matrix and print its table."""
    out.mkdir(parents=True, exist_ok=True)
    drafters = [name for name in DRAFTERS if fits(name, only)]
    chosen = list(materials(code, out, targets))
    for material in chosen:
        make_dumps(out, material, 1, ("train", "held_out"), ("--for", ",".join(KINDS)))
        for name in drafters:
            serve(out, material, name, max_steps, prompts, formats)
    cells = ((material, name) for material in chosen for name in drafters)
    table(HEADER, (row for cell in cells for row in rows(out, *cell, formats)))


if __name__ == "__main__":
    main()
