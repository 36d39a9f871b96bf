"""Does vLLM measure what the replay predicts? Three targets, each drafter, 3 to 7 draft tokens.

    python -m scripts.serving --out runs/serving [--code runs/code] [--only 'peagle*']

The targets: the sample target (a Llama), and two that scripts/make_code_target makes (Qwen3, and
Qwen2; both with tied embeddings). Every step does nothing where its result lies there already.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click

from scripts.commands import specpipe
from scripts.material import Material, code_material, make_dumps, sample_material
from specpipe.schemas.drafters.registry import KINDS

DRAFT_TOKENS = (3, 5, 7)
DRAFTERS: dict[str, tuple[str, ...]] = {
    "eagle3": ("--config", "scripts/papers.yaml", "--learning-rate", "2e-3"),
    "peagle": ("--drafter", "peagle", "--num-layers", "2"),
    "peagle-windowed": ("--drafter", "peagle", "--sliding-window", "48"),
    "dflash": ("--drafter", "dflash", "--num-layers", "2"),
    "dflash-causal": ("--drafter", "dflash", "--num-layers", "2", "--causal"),
    "dflash-windowed": ("--drafter", "dflash", "--num-layers", "2", "--sliding-window", "48"),
    "eagle1": ("--drafter", "eagle1"),
    "medusa": ("--drafter", "medusa"),
}
"""What is trained of each, and how."""
FORMATS = {"eagle3": ("speculators", "eagle3"), "peagle": ("speculators", "plain")}
"""Of those that are served in more than their first one."""
_WITHOUT_MAP = ("eagle1", "medusa")
"""They draft from the whole vocabulary."""


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


def serve(out: Path, material: Material, drafter: str, max_steps: int, prompts: int) -> None:
    """A drafter of seven heads, exported in its formats, each served with the real engine."""
    name = f"{material.name}-{drafter}"
    log, dump, run = out / f"{name}.log", out / f"dump-{material.name}", out / name
    vocab = () if drafter in _WITHOUT_MAP else ("--draft-vocab-size", 1024)
    specpipe(
        log, "train", *DRAFTERS[drafter], "--dump", f"{dump}-train",
        "--eval-dump", f"{dump}-held_out", "--out", run, "--num-heads", max(DRAFT_TOKENS),
        *vocab, "--batch-tokens", 2048, "--max-steps", max_steps, "--eval-every", max_steps,
    )  # fmt: skip
    for format in FORMATS.get(drafter, ("",)):
        specpipe(
            log, "export", "--checkpoint", run, "--out", out / f"{name}-{format or 'artifact'}",
            *(("--format", format) if format else ()),
            "--validation", "structure,replay,serve",
            "--serve-prompts", prompts, "--serve-batch-sizes", 1,
            "--serve-speculative-tokens", ",".join(map(str, DRAFT_TOKENS)),
        )  # fmt: skip
        click.echo(f"{name} {format} served", err=True)


def rows(out: Path, target: str, drafter: str) -> Iterator[tuple[str, ...]]:
    """A row for each format, number of draft tokens and temperature."""
    for format in FORMATS.get(drafter, ("",)):
        path = out / f"{target}-{drafter}-{format or 'artifact'}" / "validation.json"
        served = json.loads(path.read_text("utf-8"))["serve"]
        name = f"{drafter} {format}".strip()
        for run in served["runs"]:
            for mode in ("greedy", "temperature_1"):
                yield target, name, str(run["num_draft_tokens"]), mode, *_compared(run, mode)


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
@click.option("--only", default="*", show_default=True, help="Drafters whose name fits.")
@click.option("--targets", default="*", show_default=True, help="Targets whose name fits.")
def main(out: Path, code: Path, max_steps: int, prompts: int, only: str, targets: str) -> None:
    """Serve the matrix and print its table."""
    out.mkdir(parents=True, exist_ok=True)
    drafters = [name for name in DRAFTERS if fnmatch(name, only)]
    chosen = [one for one in materials(out, code) if fnmatch(one.name, targets)]
    for material in chosen:
        make_dumps(out, material, 1, ("train", "held_out"), (*KINDS,))
        for drafter in drafters:
            serve(out, material, drafter, max_steps, prompts)
    header = ["target", "drafter", "draft tokens", "", "tau measured", "tau replayed", "difference"]
    header += ["its 95 % error", "agrees, lossless"]
    click.echo(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for material in chosen:
        for drafter in drafters:
            for row in rows(out, material.name, drafter):
                click.echo(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
