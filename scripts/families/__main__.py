"""Does it take my model? Plan, dump, generate, train and export tiny targets of many families.

    python -m scripts.families --out runs/families [--only "Qwen2.5-VL" ...]

A family whose result lies there is not run again, so that it may be ended and run again; remove a
family's folder to repeat it.
"""

import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from scripts.families.targets import FAMILIES, LONGEST, REFUSED, VOCAB, save_family
from specpipe.schemas.errors import SpecpipeError
from specpipe.schemas.settings.stages import DumpConfig, ExportConfig, GenerateConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as dump
from specpipe.stages.export.run import run as export
from specpipe.stages.plan.run import estimate
from specpipe.stages.train.run import run as train

Steps = dict[str, str]
"""What came of each step: ok, the exit code and first words of an error, or a crash."""

STEPS = ("plan", "dump", "generate", "train", "export")
_NUM_SAMPLES = 10
_MOST_TOLD = 120


def write_rows(path: Path, *, is_prompt: bool) -> Path:
    """Pretokenised samples, or prompts."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(_NUM_SAMPLES):
        ids = rng.integers(3, VOCAB, int(rng.integers(12, 30))).tolist()
        labels = [-100] * len(ids) if is_prompt else [-100] * 4 + ids[4:]
        lines.append(
            json.dumps({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
            + "\n"
        )
    path.write_text("".join(lines), encoding="utf-8")
    return path


def steps(name: str, folder: Path) -> dict[str, Callable[[], object]]:
    """The commands' functions, one after the other, over a family's target."""
    target = str(folder / "target")

    def dump_config(out: str, **changes: object) -> DumpConfig:
        path = write_rows(folder / f"{out}.jsonl", is_prompt="generate" in changes)
        fixed = {"target": target, "data": (str(path),), "out": str(folder / out)}
        more = {"backend": "hf", "device": "cpu", "batch_tokens": 128, "context_length": LONGEST}
        return DumpConfig.model_validate(fixed | more | changes)

    generate = GenerateConfig(max_tokens=8, temperature=1.0)
    training = TrainConfig(
        dump=str(folder / "dump"),
        out=str(folder / "run"),
        device="cpu",
        max_steps=2,
        eval_every=2,
        draft_vocab_size=48,
        held_out_fraction=0.3,
    )
    exporting = ExportConfig(checkpoint=str(folder / "run"), out=str(folder / "artifact"))
    return {
        "plan": lambda: estimate(dump_config("dump")),
        "dump": lambda: dump(dump_config("dump")),
        "generate": lambda: dump(dump_config("generated", generate=generate)),
        "train": lambda: train(training),
        "export": lambda: export(exporting),
    }


def run_family(name: str, folder: Path) -> Steps:
    """Every step up to the first that fails, which is the last but for `generate`."""
    found: Steps = {}
    folder.mkdir(parents=True)
    save_family(name, folder / "target")
    for step, call in steps(name, folder).items():
        try:
            call()
        except SpecpipeError as error:
            found[step] = f"{error.exit_code}: {' '.join(str(error).split())[:_MOST_TOLD]}"
        except Exception as error:  # a traceback, whatever it is, is what is looked for
            words = " ".join(str(error).split())[:_MOST_TOLD]
            found[step] = f"CRASH {type(error).__name__}: {words}"
        else:
            found[step] = "ok"
        if found[step] != "ok" and step != "generate":
            break
    return found


def is_as_expected(name: str, found: Steps) -> bool:
    if name in REFUSED:
        return found.get("plan", "").startswith("2:")
    return all(found.get(step) == "ok" for step in STEPS)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/prove/families"))
@click.option("--only", multiple=True, help="Names of families; default: all.")
def main(out: Path, only: tuple[str, ...]) -> None:
    """Run the families that have no result yet, and print the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"| family | {' | '.join(STEPS)} |\n{'|---' * (len(STEPS) + 1)}|")
    results: dict[str, Steps] = {}
    for name in only or FAMILIES:
        folder = out / name.replace(" ", "-").replace(",", "")
        record, start = folder / "steps.json", time.monotonic()
        if not record.exists():
            try:
                found = run_family(name, folder)
            except Exception as error:
                found = {"plan": f"NO TARGET {type(error).__name__}: {str(error)[:_MOST_TOLD]}"}
            record.write_text(json.dumps(found), encoding="utf-8")
        results[name] = json.loads(record.read_text(encoding="utf-8"))
        cells = [results[name].get(step, "-") for step in STEPS]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        click.echo(f"{name}: {time.monotonic() - start:.0f} s", err=True)
    others = [name for name, found in results.items() if not is_as_expected(name, found)]
    print(
        f"\n{len(results) - len(others)} of {len(results)} as expected; others: {others or 'none'}"
    )
    raise SystemExit(bool(others))


if __name__ == "__main__":
    main()
