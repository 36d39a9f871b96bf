"""EAGLE-3 written down plainly, to prove exported files with: dense attention, float32, no tricks.

It reads nothing but the artifact's two files and the target's embedding, and shares no code with
the drafter that is trained (drafter/eagle3.py). Only the rotary angles are transformers' own.

At start i the target has consumed x[0..i] and emitted x[i+1]. Step k takes token x[i+k] and the
hidden state of step k-1 (step 1: the features of position i) at rope position i+k-1, attends to
all step-1 keys of positions <= i and to its own start's keys of steps 2..k, and predicts x[i+k+1].

Legend: T tokens, P positions with a next token, N starts, K steps, L aux layers, H hidden size,
A attention heads, E head size, C steps of a chain, D draft vocabulary, V vocabulary.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specpipe.schemas.artifact import CONFIG_FILE, MODEL_TENSORS_FILE


@dataclass(slots=True)
class PlainDrafter:
    """The exported drafter; `tensors` are the file's, in float32."""

    config: dict[str, Any]
    layer: LlamaConfig
    tensors: dict[str, Tensor]
    embedding_VH: Tensor
    target_ids_D: Tensor

    @classmethod
    def load(cls, folder: Path, embedding_VH: Tensor) -> "PlainDrafter":
        config = read_config(folder)
        stored = load_file(folder / MODEL_TENSORS_FILE)
        ids_D = torch.arange(config["draft_vocab_size"])
        if "d2t" in stored:
            ids_D = ids_D + stored["d2t"]
        tensors = {
            name: tensor.float() for name, tensor in stored.items() if tensor.is_floating_point()
        }
        layer = LlamaConfig(**config["transformer_layer_config"])
        return cls(config, layer, tensors, embedding_VH.float(), ids_D)

    @property
    def aux_layers(self) -> tuple[int, ...]:
        return tuple(self.config["eagle_aux_hidden_state_layer_ids"])

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """float32 [N, D]"""
        return self._linear("lm_head", self._norm("norm", hidden_NH))

    @torch.no_grad()
    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, N, H] of every step at the starts [begin, end), end < T.

        A step whose token x[i+k] lies outside the sample is fed token 0; its output means nothing.
        """
        tokens_T = torch.cat([input_ids_T.long(), torch.zeros(num_steps, dtype=torch.int64)])
        positions_P = torch.arange(end)
        features_PH = self._features(aux_TLH[:end])
        query, key_1, value_1 = self._attention_inputs(
            tokens_T[1 : end + 1], features_PH, positions_P
        )
        mixed = _attend(query, positions_P, key_1, value_1, [], [])
        output_PH = self._after_attention(features_PH, mixed)

        starts_N = torch.arange(begin, end)
        outputs = [output_PH[begin:end]]
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for step in range(2, num_steps + 1):
            hidden_NH = self._feedback(outputs[-1])
            query, key, value = self._attention_inputs(
                tokens_T[starts_N + step], hidden_NH, starts_N + step - 1
            )
            keys.append(key)
            values.append(value)
            mixed = _attend(query, starts_N, key_1, value_1, keys, values)
            outputs.append(self._after_attention(hidden_NH, mixed))
        return torch.stack(outputs)

    def _features(self, aux_PLH: Tensor) -> Tensor:
        """fc over the concatenated aux states, normed first where the config says so."""
        aux_PLH = aux_PLH.float()
        if self.config["fc_norm"]:
            parts = [self._norm(f"fc_norm.{i}", aux_PLH[:, i]) for i in range(aux_PLH.shape[1])]
            aux_PLH = torch.stack(parts, dim=1)
        features = aux_PLH.flatten(1)
        if self.config["norm_before_fc"]:
            features = self._norm("input_norm", features)
        return self._linear("fc", features)

    def _feedback(self, output_NH: Tensor) -> Tensor:
        return self._norm("norm", output_NH) if self.config["norm_output"] else output_NH

    def _attention_inputs(
        self, tokens_N: Tensor, hidden_NH: Tensor, positions_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query [N, A, E], key and value [N, A, E] (grouped heads repeated), rope applied."""
        embedded = self._norm("layers.0.input_layernorm", self.embedding_VH[tokens_N])
        normed = self._norm("layers.0.hidden_norm", hidden_NH)
        both = torch.cat([embedded, normed], dim=-1)
        shape = self.config["transformer_layer_config"]
        heads, groups = shape["num_attention_heads"], shape["num_key_value_heads"]
        query, key, value = (
            self._linear(f"layers.0.self_attn.{name}_proj", both).view(len(both), count, -1)
            for name, count in (("q", heads), ("k", groups), ("v", groups))
        )
        cos, sin = LlamaRotaryEmbedding(self.layer)(both[None], positions_N[None])
        key, value = (
            t.repeat_interleave(heads // groups, dim=1) for t in (_rotate(key, cos, sin), value)
        )
        return _rotate(query, cos, sin), key, value

    def _after_attention(self, hidden_NH: Tensor, mixed_NAE: Tensor) -> Tensor:
        before = self.config["norm_before_residual"]
        residual = self._norm("layers.0.hidden_norm", hidden_NH) if before else hidden_NH
        residual = residual + self._linear("layers.0.self_attn.o_proj", mixed_NAE.flatten(1))
        normed = self._norm("layers.0.post_attention_layernorm", residual)
        gate = ACT2FN[self.layer.hidden_act](self._linear("layers.0.mlp.gate_proj", normed))
        up = self._linear("layers.0.mlp.up_proj", normed)
        return residual + self._linear("layers.0.mlp.down_proj", gate * up)

    def _linear(self, name: str, inputs: Tensor) -> Tensor:
        return inputs @ self.tensors[f"{name}.weight"].T

    def _norm(self, name: str, inputs: Tensor) -> Tensor:
        mean_square = inputs.pow(2).mean(-1, keepdim=True)
        scaled = inputs * torch.rsqrt(mean_square + self.layer.rms_norm_eps)
        return scaled * self.tensors[f"{name}.weight"]


def read_config(folder: Path) -> dict[str, Any]:
    """An artifact's config.json."""
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return config


def _rotate(vectors_NAE: Tensor, cos_1NE: Tensor, sin_1NE: Tensor) -> Tensor:
    """Rotary embedding of halves, the layout of Llama checkpoints."""
    first, second = vectors_NAE.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return vectors_NAE * cos_1NE[0, :, None] + turned * sin_1NE[0, :, None]


def _attend(
    query_NAE: Tensor,
    starts_N: Tensor,
    key_PAE: Tensor,
    value_PAE: Tensor,
    chain_keys: list[Tensor],
    chain_values: list[Tensor],
) -> Tensor:
    """Attention over the step-1 keys of positions <= start, and each start's own chain."""
    scale = query_NAE.shape[-1] ** -0.5
    scores_ANP = torch.einsum("nae,pae->anp", query_NAE, key_PAE) * scale
    later_NP = torch.arange(len(key_PAE)) > starts_N[:, None]
    scores_ANP = scores_ANP.masked_fill(later_NP, float("-inf"))
    if not chain_keys:
        return torch.einsum("anp,pae->nae", scores_ANP.softmax(-1), value_PAE)
    key_CNAE, value_CNAE = torch.stack(chain_keys), torch.stack(chain_values)
    scores_ANC = torch.einsum("nae,cnae->anc", query_NAE, key_CNAE) * scale
    weights = torch.cat([scores_ANP, scores_ANC], dim=-1).softmax(-1)
    shared, own = weights[..., : len(key_PAE)], weights[..., len(key_PAE) :]
    return torch.einsum("anp,pae->nae", shared, value_PAE) + torch.einsum(
        "anc,cnae->nae", own, value_CNAE
    )
