"""Roots to write to."""

import uuid
from pathlib import Path

import pytest


@pytest.fixture(params=["local", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh root on each kind of store."""
    return {
        "local": f"{tmp_path}/a/root",
        "file": f"file://{tmp_path}/b/root",
        "memory": f"memory://{uuid.uuid4().hex}/root",
    }[request.param]
