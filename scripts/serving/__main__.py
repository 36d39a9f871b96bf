"""Does vLLM measure what the replay predicts? Three targets, both formats, 3 to 7 draft tokens.

    python -m scripts.serving --out runs/serving [--code runs/code]

The targets: the sample target (a Llama), and two that scripts/make_code_target makes (Qwen3, and
Qwen2; both with tied embeddings). Every step does nothing where its result lies there already.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from scripts.commands import specpipe
from scripts.material import Material, code_material, make_dumps, sample_material

FORMATS = ("speculators", "eagle3")
DRAFT_TOKENS = (3, 5, 7)


def materials(out: Path, code: Path) -> list[Material]:
    """The targets with the prompts that they answer."""
    qwen2 = out / "qwen2"
    for folder, architecture in ((code, "qwen3"), (qwen2, "qwen2")):
        if not (folder / "target" / "model.safetensors").exists():
            command = [sys.executable, "-m", "scripts.targets.code_target", "--out", str(folder)]
            subprocess.run([*command, "--architecture", architecture], check=True)
    return [
        sample_material("Llama"),
        code_material("Qwen3-tied", code),
        code_material("Qwen2-tied", qwen2),
    ]


def serve(out: Path, material: Material, max_steps: int, prompts: int) -> None:
    """A drafter of seven heads, exported in both formats, each served with the real engine."""
    log, dump, run = (
        out / f"{material.name}.log",
        out / f"dump-{material.name}",
        out / material.name,
    )
    specpipe(
        log, "train", "--config", "scripts/papers.yaml", "--dump", f"{dump}-train",
        "--eval-dump", f"{dump}-held_out", "--out", run,
        "--num-heads", max(DRAFT_TOKENS), "--draft-vocab-size", 1024, "--learning-rate", 2e-3,
        "--batch-tokens", 2048, "--max-steps", max_steps, "--eval-every", max_steps,
    )  # fmt: skip
    for format in FORMATS:
        specpipe(
            log, "export", "--checkpoint", run, "--out", out / f"{material.name}-{format}",
            "--format", format, "--validation", "structure,replay,serve",
            "--serve-prompts", prompts, "--serve-batch-sizes", 1,
            "--serve-speculative-tokens", ",".join(map(str, DRAFT_TOKENS)),
        )  # fmt: skip
        click.echo(f"{material.name} {format} served", err=True)


def rows(out: Path, names: list[str]) -> Iterator[tuple[str, ...]]:
    """A row for each target, format, number of draft tokens and temperature."""
    for name in names:
        for format in FORMATS:
            path = out / f"{name}-{format}" / "validation.json"
            served = json.loads(path.read_text("utf-8"))["serve"]
            for run in served["runs"]:
                for mode in ("greedy", "temperature_1"):
                    yield name, format, str(run["num_draft_tokens"]), mode, *_compared(run, mode)


def _compared(run: dict[str, Any], mode: str) -> tuple[str, ...]:
    found = run[mode]
    lossless = run[f"lossless_{mode}"]
    return (
        f"{found['tau_measured']:.4f}",
        f"{found['tau_replayed']:.4f}",
        f"{found['relative_difference']:+.2%}",
        f"{found['relative_error_95']:.2%}",
        "yes" if found["passed"] and lossless["passed"] else "NO",
    )


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/prove/serving"))
@click.option("--code", type=click.Path(path_type=Path), default=Path("runs/code"))
@click.option("--max-steps", default=160, show_default=True)
@click.option("--prompts", default=100, show_default=True)
def main(out: Path, code: Path, max_steps: int, prompts: int) -> None:
    """Serve the matrix and print its table."""
    out.mkdir(parents=True, exist_ok=True)
    targets = materials(out, code)
    for material in targets:
        make_dumps(out, material, 1, ("train", "held_out"))
        serve(out, material, max_steps, prompts)
    header = ["target", "format", "draft tokens", "", "tau measured", "tau replayed", "difference"]
    header += ["its 95 % error", "agrees, lossless"]
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows(out, [material.name for material in targets]):
        click.echo(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
