"""A tiny random Llama on disk, the target of most tests."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def save_tiny_llama(
    folder: Path,
    vocab_size: int,
    *,
    seed: int = 0,
    spread: float = 0.15,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Write a Llama with grouped queries whose weights, norms included, are moved at random."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **(shape | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    return folder
