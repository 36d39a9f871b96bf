"""A tiny random target with a vocabulary of 262,144 tokens, and text for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.commands import specpipe

VOCAB = 262_144
SAMPLES = 120


def wide_dump(out: Path) -> Path:
    """A dump of its states on random texts of 24 to 64 tokens."""
    target, data, dump = out / "wide", out / "wide.jsonl", out / "dump-wide"
    if not (target / "model.safetensors").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=6,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            initializer_range=0.1, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model: Any = LlamaForCausalLM(config)
        model.to(torch.bfloat16).save_pretrained(target)
    rng = np.random.default_rng(0)
    with data.open("w", encoding="utf-8") as file:
        for _ in range(SAMPLES):
            ids = rng.integers(3, VOCAB, size=int(rng.integers(24, 64))).tolist()
            row = {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "labels": [-100] * 8 + ids[8:],
            }
            file.write(json.dumps(row) + "\n")
    specpipe(
        out / "proofs.log", "dump", "--target", target, "--data", data, "--out", dump,
        "--backend", "hf",
    )  # fmt: skip
    return dump
