"""Artifacts to change, and artifacts of random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specpipe.schemas.drafters.eagle3 import Eagle3Shape
from specpipe.stages.drafters.eagle3.layout import expected_tensors, may_share_lm_head

Tensors = dict[str, Tensor]
Config = dict[str, Any]


def edit_tensors(artifact: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(artifact / "model.safetensors")
    edit(tensors)
    save_file(tensors, artifact / "model.safetensors")


def edit_config(artifact: Path, edit: Callable[[Config], object]) -> None:
    path = artifact / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def random_tensors(
    shape: Eagle3Shape,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    *,
    embedding: bool = False,
    lm_head: bool = True,
) -> Tensors:
    """Every tensor of such an artifact, under our names."""
    generator = torch.Generator().manual_seed(seed)
    expected = expected_tensors(
        shape, embedding=embedding, lm_head=lm_head or not may_share_lm_head(shape)
    )
    tensors = {
        name: torch.randn(size, generator=generator).to(dtype)
        for name, (size, kind) in expected.items()
        if kind == "float"
    }
    if "d2t" in expected:
        V, D = shape.vocab_size, shape.draft_vocab_size
        ids_D = torch.randperm(V, generator=generator)[:D].sort().values
        tensors["d2t"] = ids_D - torch.arange(D)
        tensors["t2d"] = torch.isin(torch.arange(V), ids_D)
    return tensors
