"""Roots to write to, and a dump to damage."""

import shutil
import uuid
from pathlib import Path

import pytest

from specpipe.schemas.records.dump import DumpIdentity
from tests.storage.tiny import make_identity, make_shards, write_dump


@pytest.fixture(params=["local", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh root on each kind of store."""
    return {
        "local": f"{tmp_path}/a/root",
        "file": f"file://{tmp_path}/b/root",
        "memory": f"memory://{uuid.uuid4().hex}/root",
    }[request.param]


@pytest.fixture(scope="module")
def identity() -> DumpIdentity:
    return make_identity(chunk_tokens=4)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, identity: DumpIdentity) -> Path:
    path = tmp_path_factory.mktemp("sound") / "dump"
    write_dump(str(path), identity, make_shards(identity))
    return path


@pytest.fixture
def dump(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(sound, tmp_path / "dump")
