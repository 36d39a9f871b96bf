"""Plain pieces of the proposals of drafters whose first layer attends with [embedding; hidden].

Dense, in float32 or float64, without tricks. Nothing but the artifact's two files and the target's
embedding and lm_head is read, and no code is shared with the drafters that are trained; only the
rotary angles are transformers' own.

Legend: P positions, N rows, L aux layers, H hidden size, A attention heads, E head size, D draft
vocabulary, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specpipe.schemas.records.artifact import (
    EMBEDDING,
    LM_HEAD,
    MODEL_TENSORS_FILE,
)
from specpipe.stages.drafters.artifact import read_config
from specpipe.stages.drafters.parts.artifact.layer_config import layer_config
from specpipe.stages.untrusted.tensors import load_tensors


@dataclass(slots=True)
class PlainEagle:
    """An exported drafter; `tensors` are the file's, in float32 unless asked for otherwise."""

    config: dict[str, Any]
    layer: dict[str, Any]
    """Settings of its layers."""
    tensors: dict[str, Tensor]
    embedding_VH: Tensor
    target_ids_D: Tensor

    @classmethod
    def load(
        cls, folder: Path, embedding_VH: Tensor, lm_head: Callable[[], Tensor] | None = None
    ) -> Self:
        """`embedding_VH` and `lm_head` [V, H] are the target's, which the drafter takes where it
        has none of its own."""
        config = read_config(folder)
        layer = dict(layer_config(config))
        path = folder / MODEL_TENSORS_FILE
        stored = {
            name.replace("midlayer.", "layers.0."): tensor
            for name, tensor in load_tensors(path, str(path)).items()
        }
        if LM_HEAD not in stored and lm_head is not None:
            stored[LM_HEAD] = lm_head()
        ids_D = torch.arange(config["draft_vocab_size"] or layer["vocab_size"])
        if "d2t" in stored:
            ids_D = ids_D + stored["d2t"]
        tensors = {
            name: tensor.float() for name, tensor in stored.items() if tensor.is_floating_point()
        }
        return cls(config, layer, tensors, tensors.get(EMBEDDING, embedding_VH), ids_D)

    def double(self) -> Self:
        """The same in float64."""
        tensors = {name: tensor.double() for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors["fc.weight"].dtype

    @property
    def aux_layers(self) -> tuple[int, ...]:
        return tuple(self.config["eagle_aux_hidden_state_layer_ids"])

    @property
    def vocab_size(self) -> int:
        return len(self.embedding_VH)

    def logits(self, hidden_NH: Tensor, step: int = 1) -> Tensor:
        """[N, D]; every step has the same head."""
        return self.linear("lm_head", self.norm("norm", hidden_NH))

    def features(self, aux_PLH: Tensor) -> Tensor:
        """fc over the concatenated aux states, normed first where the config says so."""
        aux_PLH = aux_PLH.to(self.dtype)
        if self.config.get("fc_norm"):
            parts = [self.norm(f"fc_norm.{i}", aux_PLH[:, i]) for i in range(aux_PLH.shape[1])]
            aux_PLH = torch.stack(parts, dim=1)
        features = aux_PLH.flatten(1)
        if self.config["norm_before_fc"]:
            features = self.norm("input_norm", features)
        return self.linear("fc", features)

    def attention_input(
        self, number: int, tokens_N: Tensor, hidden_NH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is projected, and the residual. Only the first layer sees the token."""
        if number > 0:
            return self.norm(f"layers.{number}.input_layernorm", hidden_NH), hidden_NH
        embedded = self.norm("layers.0.input_layernorm", self.embedding_VH[tokens_N].to(self.dtype))
        normed = self.norm("layers.0.hidden_norm", hidden_NH)
        residual = normed if self.config["norm_before_residual"] else hidden_NH
        return torch.cat([embedded, normed], dim=-1), residual

    def projected(
        self, number: int, inputs: Tensor, positions_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [N, A, E] (grouped heads repeated), rope applied."""
        heads, groups = self.layer["num_attention_heads"], self.layer["num_key_value_heads"]
        name = f"layers.{number}.self_attn"
        query, key, value = (
            self.linear(f"{name}.{which}_proj", inputs).view(len(inputs), count, -1)
            for which, count in (("q", heads), ("k", groups), ("v", groups))
        )
        if self.layer["model_type"] == "qwen3":
            query, key = self.norm(f"{name}.q_norm", query), self.norm(f"{name}.k_norm", key)
        cos, sin = self.rope(positions_N)
        key, value = (
            t.repeat_interleave(heads // groups, dim=1) for t in (rotate(key, cos, sin), value)
        )
        return rotate(query, cos, sin), key, value

    def rope(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        heads, size = self.layer["num_attention_heads"], self.layer["head_dim"]
        config = LlamaConfig(
            hidden_size=heads * size,
            num_attention_heads=heads,
            head_dim=size,
            max_position_embeddings=self.layer["max_position_embeddings"],
            rope_parameters=dict(self.layer["rope_parameters"]),
        )
        like = torch.zeros(1, dtype=self.dtype)
        cos, sin = LlamaRotaryEmbedding(config)(like, positions_N[None])
        return cos, sin

    def after_attention(self, number: int, residual_NH: Tensor, mixed_NAE: Tensor) -> Tensor:
        name = f"layers.{number}"
        residual = residual_NH + self.linear(f"{name}.self_attn.o_proj", mixed_NAE.flatten(1))
        normed = self.norm(f"{name}.post_attention_layernorm", residual)
        gate = ACT2FN[self.layer["hidden_act"]](self.linear(f"{name}.mlp.gate_proj", normed))
        up = self.linear(f"{name}.mlp.up_proj", normed)
        return residual + self.linear(f"{name}.mlp.down_proj", gate * up)

    def linear(self, name: str, inputs: Tensor) -> Tensor:
        return inputs @ self.tensors[f"{name}.weight"].T

    def norm(self, name: str, inputs: Tensor) -> Tensor:
        mean_square = inputs.pow(2).mean(-1, keepdim=True)
        scaled = inputs * torch.rsqrt(mean_square + self.layer["rms_norm_eps"])
        return scaled * self.tensors[f"{name}.weight"]


def rotate(vectors_NAE: Tensor, cos_1NE: Tensor, sin_1NE: Tensor) -> Tensor:
    """Rotary embedding of halves, the layout of Llama checkpoints."""
    first, second = vectors_NAE.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return vectors_NAE * cos_1NE[0, :, None] + turned * sin_1NE[0, :, None]
