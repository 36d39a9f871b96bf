"""A measurement in a process of its own: settings in as JSON, results out as JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Values = dict[str, Any]


def in_child(module: str, values: Values, environment: Mapping[str, str] | None = None) -> Values:
    """What `answer` of the module makes of the values. Raises RuntimeError with its last words."""
    with TemporaryDirectory(prefix="bench-child-") as folder:
        asked, answered = Path(folder) / "in.json", Path(folder) / "out.json"
        asked.write_text(json.dumps(values))
        ended = subprocess.run(
            [sys.executable, "-m", module, str(asked), str(answered)],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if ended.returncode or not answered.exists():
            raise RuntimeError(f"{module} ended with {ended.returncode}:\n{ended.stderr[-4000:]}")
        found: Values = json.loads(answered.read_text())
        return found


def serve_parent(answer: Callable[[Values], Values]) -> None:
    """The child's side."""
    asked, answered = map(Path, sys.argv[1:3])
    answered.write_text(json.dumps(answer(json.loads(asked.read_text()))))
