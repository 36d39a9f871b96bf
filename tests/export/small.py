"""A small pipeline: its target, its samples, and where everything of it lies."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
VOCAB = 96


@dataclass(frozen=True)
class Trained:
    """Where everything of one small pipeline lies."""

    target: Path
    dump: Path
    run: Path


def save_target(folder: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.bfloat16().save_pretrained(folder)
    return folder


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
