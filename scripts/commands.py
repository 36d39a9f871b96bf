"""The command `specpipe`, as the long proofs call it."""

import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path


def fits(name: str, patterns: str) -> bool:
    """Whether a name is one of those that are asked for: patterns with commas."""
    return any(fnmatch(name, pattern) for pattern in patterns.split(","))


def specpipe(log: Path, *arguments: object) -> None:
    """Run a command on one thread, its output appended to `log`.

    Raises CalledProcessError where it fails.
    """
    with log.open("a", encoding="utf-8") as file:
        subprocess.run(
            [sys.executable, "-m", "specpipe", *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
