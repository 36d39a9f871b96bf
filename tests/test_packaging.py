"""The house: one namespace over three roots, light schemas, a command line that starts at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "vllm", "zarr", "pyarrow", "fsspec", "numpy")


def test_no_root_defines_specpipe_init() -> None:
    assert not list(ROOT.glob("*/specpipe/__init__.py"))


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from specpipe.pipeline.cli import specpipe\n"
        "for args in (['--help'], ['dump', '--help'], ['train', '--help'], ['export', '--help']):\n"
        "    try: specpipe.main(args)\n"
        "    except SystemExit as done: assert done.code == 0\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_what_only_starts_and_watches_stages_imports_nothing_heavy() -> None:
    """`specpipe run`, its --status and the API's server: a stage has a process of its own."""
    program = (
        "import sys, specpipe.pipeline.cli, specpipe.pipeline.api.app\n"
        "import specpipe.pipeline.job.runner, specpipe.pipeline.job.status\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", [["specpipe"], [sys.executable, "-m", "specpipe"]])
def test_both_ways_to_start(command: list[str]) -> None:
    executable = [str(Path(sys.executable).with_name("specpipe"))] if len(command) == 1 else command
    done = subprocess.run(
        [*executable, "--version"], capture_output=True, text=True, cwd="/", check=True
    )
    assert "0.1.0" in done.stdout


def test_no_file_grows_over_400_lines() -> None:
    for folder in ("pipeline", "stages", "schemas"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_no_pickle_on_any_path() -> None:
    """Nothing imports pickle, and torch.load and torch.save (pickles) are not called."""
    for folder in ("pipeline", "stages", "schemas"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                assert not {"pickle", "dill", "cloudpickle", "joblib"} & set(names), path
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    where = ast.unparse(node.func)
                    assert where not in ("torch.load", "torch.save", "np.load", "numpy.load"), path
