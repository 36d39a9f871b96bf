"""A small pipeline: its target, its samples, and where everything of it lies."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run as dump
from tests.tiny_llama import save_tiny_llama

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
VOCAB = 96


@dataclass(frozen=True)
class Trained:
    """Where everything of one small pipeline lies."""

    target: Path
    dump: Path
    run: Path


def save_target(folder: Path) -> Path:
    return save_tiny_llama(
        folder,
        VOCAB,
        spread=0.1,
        dtype=torch.bfloat16,
        num_hidden_layers=6,
        max_position_embeddings=256,
    )


def write_samples(path: Path, num_samples: int) -> Path:
    """Samples of two supervised spans each."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_samples):
            ids = rng.integers(3, VOCAB, size=int(rng.integers(20, 40))).tolist()
            labels = [-100 if t < 6 or t == 13 else token for t, token in enumerate(ids)]
            row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
            file.write(json.dumps(row) + "\n")
    return path


def sample_dump(root: Path, name: str, num_samples: int, *drafters: str) -> Path:
    """Of texts that the sample target wrote, with the layers that these drafters read."""
    text = (SAMPLE_DATA / name / "generated.jsonl").read_text(encoding="utf-8")
    data = root / f"{name}.jsonl"
    data.write_text("\n".join(text.splitlines()[:num_samples]) + "\n", encoding="utf-8")
    dump(
        DumpConfig(
            target=str(SAMPLE_DATA / "target"),
            data=(str(data),),
            out=str(root / name),
            backend="hf",
            text_temperature=1.0,
            for_drafters=drafters,
        )
    )
    return root / name
