"""What schedulers give to the commands that they start, and stand-ins for commands of their own."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations"

# What a task that `srun` starts finds; an option of srun would be in its way.
SRUN = 'SLURM_PROCID=0 SLURM_NTASKS=${SLURM_NTASKS:-1} exec "$@"'


def environment(commands: Path, changes: Mapping[str, str]) -> dict[str, str]:
    """With the commands of a folder, and `specpipe`, on the path."""
    path = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**os.environ, **changes, "PATH": os.pathsep.join(path)}


def start_all(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]
) -> list[tuple[int, str, str]]:
    """Run commands side by side; their exit codes, and what they print."""
    processes = [
        subprocess.Popen(
            command, env=dict(variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command, variables in zip(commands, environments, strict=True)
    ]
    printed = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, printed, strict=True)]


def write_command(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


def sbatch_variables(index: int, first: int, count: int) -> dict[str, str]:
    """As sbatch sets them for a task of an array."""
    return {
        "SLURM_JOB_ID": str(100 + index),
        "SLURM_ARRAY_JOB_ID": "100",
        "SLURM_ARRAY_TASK_ID": str(index),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(first + count - 1),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_STEP": "1",
        "SLURM_NTASKS": "1",
    }


def manifests(name: str) -> dict[str, Any]:
    """The objects of a Kubernetes file in docs/operations, by kind."""
    text = (OPERATIONS / name).read_text(encoding="utf-8")
    return {each["kind"]: each for each in yaml.safe_load_all(text)}
