"""`ray job submit`, read by Ray's own parser and run as Ray's job manager runs it; a program.

The real one needs Ray's dashboard. The entrypoint becomes a line of the shell, in a copy of the
working directory, with the cluster's address in RAY_ADDRESS; a job that fails gives exit code 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ray.dashboard.modules.job.cli import submit


def main() -> None:
    assert sys.argv[1:3] == ["job", "submit"]
    given = submit.make_context("ray job submit", sys.argv[3:]).params
    assert given["address"] == os.environ["EXPECTED_ADDRESS"]
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(given["working_dir"], Path(folder) / "working_dir")
        line = subprocess.list2cmdline(given["entrypoint"])
        code = subprocess.run(line, shell=True, cwd=copied, check=False).returncode
    sys.exit(min(code, 1))


if __name__ == "__main__":
    main()
