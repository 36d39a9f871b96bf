"""One training of either study: where it lies, what it left, and how ours is made."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from scripts.bench.child import in_child
from scripts.commands import specpipe
from scripts.quality.judge import HALVES, Half, Judged, judge
from specpipe.schemas.base import Frozen
from specpipe.stages.storage.dump import Dump

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
RESULT_FILE = "result.json"

Settings = dict[str, Any]


class Counted(Frozen):
    """What a training took."""

    settings: Settings
    """Those that were given; the others are the trainer's defaults."""
    steps: int
    num_tokens: int
    cpu_seconds: float
    """Of the steps, on one thread: what they take where nothing else runs."""
    seconds: float


class Trained(Counted):
    """What a training left."""

    judged: Judged


Result = TypeVar("Result", bound=Counted)


def read_trained(folder: Path) -> Trained | None:
    """None where the cell is not done."""
    return read_result(folder, Trained)


def read_result(folder: Path, kind: type[Result]) -> Result | None:
    """None where the cell is not done."""
    path = folder / RESULT_FILE
    return kind.model_validate_json(path.read_text("utf-8")) if path.exists() else None


def write_trained(folder: Path, trained: Counted) -> None:
    """Whole or not at all."""
    path = folder / RESULT_FILE
    path.with_suffix(".part").write_text(trained.model_dump_json(indent=1), encoding="utf-8")
    path.with_suffix(".part").replace(path)


def dump_of(out: Path, material: str, text: str) -> str:
    return str(out / f"dump-{material}-{text}")


def of_drafter(out: Path, material: str, drafter: str) -> Settings:
    """An architecture on the layers that the dump has, whichever it would choose itself."""
    layers = Dump.open(dump_of(out, material, "train")).identity.layers
    return {"drafter": drafter, "layers": layers}


def train_ours(
    out: Path, folder: Path, material: str, settings: Settings, halves: Sequence[Half] = HALVES
) -> Trained:
    """Train, export, and judge by these halves of the prompts."""
    counted = make_ours(out, folder, material, settings)
    found = judged(out, artifact_of(folder), material, settings, halves)
    return Trained(**counted.model_dump(), judged=found)


def artifact_of(folder: Path) -> Path:
    """The artifact that a cell exported."""
    return folder / "artifact" / "checkpoint"


def make_ours(out: Path, folder: Path, material: str, settings: Settings) -> Counted:
    """Train from the beginning (the seconds of a part say nothing), and export."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run, log = folder / "run", folder / "log"
    config = {"dump": dump_of(out, material, "train"), "out": str(run), **settings}
    (folder / "settings.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    counted = in_child("scripts.quality.our_side", config, ONE_THREAD)
    specpipe(
        log, "export", "--checkpoint", run, "--out", folder / "artifact",
        "--dump", dump_of(out, material, "held_out"), "--validation", "structure",
    )  # fmt: skip
    shutil.rmtree(run / "checkpoints")
    return Counted(
        settings=settings,
        steps=counted["steps"],
        num_tokens=counted["num_tokens"],
        cpu_seconds=counted["cpu_seconds"],
        seconds=counted["seconds"],
    )


def judged(
    out: Path, artifact: Path, material: str, settings: Settings, halves: Sequence[Half] = HALVES
) -> Judged:
    """On the material's held-out texts, with as many draft tokens as it is trained for."""
    held_out, greedy = (dump_of(out, material, text) for text in ("held_out", "greedy"))
    return judge(artifact, held_out, greedy, settings.get("num_heads", 3), halves)
