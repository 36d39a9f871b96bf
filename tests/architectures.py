"""Tiny random targets of many architectures."""

from typing import Any

import torch
from transformers import (
    Cohere2Config,
    CohereConfig,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    OlmoeConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    StableLmConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 97


def config_of(name: str, layers: int, head_dim: int = 8) -> PreTrainedConfig:
    """Four query heads; grouped queries wherever the architecture has them."""
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 4 * head_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 6 * head_dim,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    gqa = {**shape, "num_key_value_heads": 2}
    match name:
        case "llama":
            return LlamaConfig(**gqa, tie_word_embeddings=False)
        case "qwen2":
            return Qwen2Config(**gqa, tie_word_embeddings=True)
        case "qwen3":
            return Qwen3Config(**gqa, head_dim=head_dim, tie_word_embeddings=True)
        case "mistral":
            return MistralConfig(**gqa, sliding_window=16, tie_word_embeddings=False)
        case "gemma2":
            return Gemma2Config(
                **gqa,
                head_dim=head_dim,
                query_pre_attn_scalar=8,
                sliding_window=16,
                final_logit_softcapping=3.0,
                attn_logit_softcapping=2.0,
            )
        case "gemma3":
            return Gemma3TextConfig(
                **gqa,
                head_dim=head_dim,
                query_pre_attn_scalar=8,
                sliding_window=16,
                layer_types=[
                    "sliding_attention" if layer % 3 < 2 else "full_attention"
                    for layer in range(layers)
                ],
            )
        case "phi3":
            return Phi3Config(**gqa, tie_word_embeddings=False)
        case "granite":
            return GraniteConfig(**gqa, logits_scaling=4.0, residual_multiplier=0.5)
        case "cohere":
            return CohereConfig(**gqa, logit_scale=0.25)
        case "cohere2":
            return Cohere2Config(**gqa, logit_scale=0.25, sliding_window=16)
        case "exaone4":
            return Exaone4Config(**gqa, sliding_window=16, sliding_window_pattern=3)
        case "gemma":
            return GemmaConfig(**gqa, head_dim=head_dim)
        case "glm4":
            return Glm4Config(**gqa, head_dim=head_dim)
        case "glm4_moe":
            return Glm4MoeConfig(  # type: ignore[call-arg]  # no field, but read all the same
                **gqa,
                head_dim=head_dim,
                moe_intermediate_size=2 * head_dim,
                n_routed_experts=4,
                num_experts_per_tok=2,
                first_k_dense_replace=1,
                n_group=1,
                topk_group=1,
            )
        case "granite_moe":
            return GraniteMoeConfig(
                **gqa, num_local_experts=4, residual_multiplier=0.5, embedding_multiplier=2.0
            )
        case "nemotron":
            return NemotronConfig(**gqa, head_dim=head_dim)
        case "qwen2_moe":
            return Qwen2MoeConfig(
                **gqa,
                moe_intermediate_size=2 * head_dim,
                shared_expert_intermediate_size=2 * head_dim,
                num_experts=4,
                num_experts_per_tok=2,
                tie_word_embeddings=False,
            )
        case "stablelm":
            return StableLmConfig(**gqa)
        case "gpt_neox":
            return GPTNeoXConfig(**shape, tie_word_embeddings=False)
        case "qwen3_moe":
            return Qwen3MoeConfig(  # type: ignore[call-arg]  # no field, but read all the same
                **gqa,
                head_dim=head_dim,
                moe_intermediate_size=2 * head_dim,
                num_experts=4,
                num_experts_per_tok=2,
                norm_topk_prob=True,
                tie_word_embeddings=False,
            )
        case "mixtral":
            return MixtralConfig(**gqa, num_local_experts=4, tie_word_embeddings=False)
        case "olmoe":
            return OlmoeConfig(**gqa, num_experts=4, num_experts_per_tok=2)
    raise ValueError(name)


def build(
    name: str, layers: int = 5, dtype: torch.dtype = torch.float32, head_dim: int = 8
) -> PreTrainedModel:
    """A model whose norms are not at their initial values and whose logits spread."""
    torch.manual_seed(7)
    config = config_of(name, layers, head_dim)
    # Whatever the width, products of about the same size.
    spread = 0.15 * (8 / head_dim) ** 0.5
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(spread * torch.randn_like(parameter))
    made: PreTrainedModel = model.to(dtype).eval()
    return made
