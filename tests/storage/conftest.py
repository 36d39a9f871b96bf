"""Makes `tests.storage.tiny` importable under importlib mode, and gives roots to write to."""

import sys
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(params=["local", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh root on each kind of store."""
    return {
        "local": f"{tmp_path}/a/root",
        "file": f"file://{tmp_path}/b/root",
        "memory": f"memory://{uuid.uuid4().hex}/root",
    }[request.param]
