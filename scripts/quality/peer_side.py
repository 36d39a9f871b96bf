"""The peer's side of a cell, as we start it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from scripts.quality.cell import ONE_THREAD, Counted, Settings, artifact_of
from scripts.quality.peer_input import PeerInput

CHECKPOINT = "checkpoint_best"
"""By its own loss on the samples that it holds out, as its documents have it."""


def train_peer(
    folder: Path, target: Path, given: PeerInput, python: str, settings: Settings
) -> Counted:
    """Train with these settings (flags of its command), and keep what it calls the best.

    Raises RuntimeError with its last words where it fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    checkpoints, counted = folder / "checkpoints", folder / "counted.json"
    flags = {
        "verifier-name-or-path": target,
        "train-data-ratio": given.train_ratio,
        "save-path": checkpoints,
        "log-dir": folder / "logs",
        **settings,
    }
    values = {
        "data": str(given.folder / "data"),
        "aux": given.aux,
        "counted": str(counted),
        "settings": {name: str(value) for name, value in flags.items()},
    }
    asked = folder / "settings.json"
    asked.write_text(json.dumps(values, indent=1), encoding="utf-8")
    log = folder / "log"
    with log.open("wb") as file:
        ended = subprocess.run(
            [python, "-m", "scripts.quality.peer_train", str(asked)],
            env=os.environ | ONE_THREAD,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if ended.returncode or not counted.exists():
        words = log.read_text("utf-8", errors="replace")[-4000:]
        raise RuntimeError(f"speculators ended with {ended.returncode}:\n{words}")
    found = json.loads(counted.read_text("utf-8"))
    shutil.copytree(checkpoints / CHECKPOINT, artifact_of(folder), ignore=_STATES)
    shutil.rmtree(checkpoints)
    return Counted(
        settings=settings,
        steps=found["steps"],
        num_tokens=int(settings["epochs"]) * given.num_tokens,
        cpu_seconds=found["cpu_seconds"],
        seconds=found["seconds"],
    )


_STATES = shutil.ignore_patterns("*.pt")
