"""The other side's own environment: runs/bench/speculators, made once."""

import subprocess
import sys
from pathlib import Path

from scripts.bench.table import note

PEER = "speculators==0.9.0"
_TORCH = "torch==2.13.0"
_NOT_FOR_A_CPU = ("torchvision", "torchaudio")
"""Required by it and used by nothing here; beside a CPU's torch their usual wheels, which are for
CUDA, break `import transformers`."""

_FOLDER = Path("runs/bench/speculators")
_MOST_WORDS = 600


def peer_python() -> str | None:
    """Its interpreter; None, with a note, where it cannot be installed."""
    python = _FOLDER / "bin" / "python"
    stamp = _FOLDER / "installed"
    wanted = f"{PEER} {_TORCH}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    _FOLDER.parent.mkdir(parents=True, exist_ok=True)
    constraints = _FOLDER.parent / "constraints.txt"
    constraints.write_text(f"{_TORCH}\n")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", str(_FOLDER)],
        # Alone and first: its build decides what the others may pull in.
        [*pip, "install", "-c", str(constraints), _TORCH],
        [*pip, "install", "-c", str(constraints), PEER],
        [*pip, "uninstall", "-y", *_NOT_FOR_A_CPU],
    ):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            words = " ".join(ended.stderr.split())[-_MOST_WORDS:]
            note(f"**{PEER} cannot be installed here: our side alone.** {words}")
            return None
    stamp.write_text(wanted)
    return str(python)
