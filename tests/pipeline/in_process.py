"""The command `specpipe` in this process, without importing torch anew."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from specpipe.pipeline import cli


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left to the one who called it."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def last_json(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return values


def specpipe(*arguments: str | Path) -> Ended:
    """Run a command line to its exit code."""
    command = ["specpipe", *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", command), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Ended(code, stdout.getvalue(), stderr.getvalue())
