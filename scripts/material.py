"""What the long proofs run on: targets, and the texts that each writes itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scripts.commands import specpipe

_SAMPLE = Path("sample_data")

Text = Literal["train", "held_out", "greedy"]
"""Answers to train on and held out, at temperature 1; and held out, greedily."""


@dataclass(frozen=True)
class Material:
    """A target, and the prompts that it answers."""

    name: str
    target: Path
    train: Path
    held_out: Path


def sample_material(name: str) -> Material:
    """The sample target."""
    train, held_out = (_SAMPLE / part / "generated.jsonl" for part in ("train", "held_out"))
    return Material(name, _SAMPLE / "target", train, held_out)


def code_material(name: str, folder: Path) -> Material:
    """A target that scripts/make_code_target has made in `folder`."""
    return Material(name, folder / "target", folder / "train.jsonl", folder / "held_out.jsonl")


def make_dumps(
    out: Path,
    material: Material,
    answers: int,
    texts: Sequence[Text],
    stored: Sequence[str] = (),
) -> None:
    """Dump these texts of a target to OUT/dump-NAME-TEXT; `answers` to each training prompt.

    `stored` are flags that say which layers are stored; default: EAGLE-3's.
    """
    data = {"train": material.train, "held_out": material.held_out, "greedy": material.held_out}
    for text in texts:
        more = ("--samples-per-prompt", answers) if text == "train" else ()
        specpipe(
            out / "dumps.log", "dump", "--generate", "--target", material.target,
            "--data", data[text], "--out", out / f"dump-{material.name}-{text}",
            "--max-tokens", 128, "--temperature", 0 if text == "greedy" else 1, *more, *stored,
        )  # fmt: skip
