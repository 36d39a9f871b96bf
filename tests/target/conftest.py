"""Tiny random targets of several architectures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 97


def _config(name: str, layers: int) -> PreTrainedConfig:
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    gqa = {**shape, "num_key_value_heads": 2}
    match name:
        case "llama":
            return LlamaConfig(**gqa, tie_word_embeddings=False)
        case "qwen3":
            return Qwen3Config(**gqa, head_dim=8, tie_word_embeddings=True)
        case "gemma2":
            return Gemma2Config(
                **gqa,
                head_dim=8,
                query_pre_attn_scalar=8,
                sliding_window=16,
                final_logit_softcapping=3.0,
                attn_logit_softcapping=2.0,
            )
        case "granite":
            return GraniteConfig(**gqa, logits_scaling=4.0, residual_multiplier=0.5)
        case "cohere":
            return CohereConfig(**gqa, logit_scale=0.25)
        case "gpt_neox":
            return GPTNeoXConfig(**shape, tie_word_embeddings=False)
    raise ValueError(name)


ARCHITECTURES = ("llama", "qwen3", "gemma2", "granite", "cohere", "gpt_neox")


def build(name: str, layers: int = 5, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose norms are not at their initial values and whose logits spread."""
    torch.manual_seed(7)
    config = _config(name, layers)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.15 * torch.randn_like(parameter))
    made: PreTrainedModel = model.to(dtype).eval()
    return made


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
