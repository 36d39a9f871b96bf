"""Tiny random targets of several architectures, on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.architectures import build

ARCHITECTURES = ("llama", "qwen3", "gemma2", "granite", "cohere", "gpt_neox")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a tiny target: target(architecture, dtype)."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def make(name: str, dtype: torch.dtype = torch.float32) -> Path:
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp(f"target-{name}")
            build(name, dtype=dtype).save_pretrained(folder)
            made[name, dtype] = folder
        return made[name, dtype]

    return make
