"""Drafters of blocks written down plainly, to prove exported files with: dense, no tricks.

It reads nothing but the artifact's two files and the target's embedding and head, and shares no
code with the drafter that is trained (model.py). Only the rotary angles are transformers' own.

At start i the target has consumed x[0..i] and emitted x[i+1]. The block's slot 0 holds x[i+1], the
others the mask token; slot b stands at position i+1+b. In every layer a slot sees the context keys
of positions <= i, which come from hidden_norm(fc(aux)) and that layer's projections, and the own
slots: all, or those up to itself. With a window, keys that far behind are not seen.

Legend: T tokens, P positions of the context, N starts, B slots, K draft tokens, L aux layers,
H hidden size, A attention heads, E head size, D draft vocabulary, V vocabulary.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from specpipe.schemas.records.artifact import (
    EMBEDDING,
    LM_HEAD,
    MODEL_TENSORS_FILE,
)
from specpipe.stages.drafters.artifact import read_config
from specpipe.stages.drafters.parts.artifact.layer_config import layer_config
from specpipe.stages.drafters.parts.block.config import layer_ids, mask_token_of, nested
from specpipe.stages.target.head.target_tensors import TargetTensors
from specpipe.stages.untrusted.tensors import load_tensors

Angles = tuple[Tensor, Tensor]
Plain = TypeVar("Plain", bound="PlainBlocks")


@dataclass(slots=True)
class PlainBlocks:
    """The exported drafter; `tensors` are the file's, in float32 unless asked for otherwise."""

    config: dict[str, Any]
    layer: dict[str, Any]
    """Settings of its layers."""
    tensors: dict[str, Tensor]
    embedding_VH: Tensor
    target_ids_D: Tensor

    @classmethod
    def load(cls: type[Plain], folder: Path, target: TargetTensors) -> Plain:
        """The target lends what the drafter has none of."""
        config = read_config(folder)
        layer = dict(layer_config(config))
        path = folder / MODEL_TENSORS_FILE
        stored = load_tensors(path, str(path))
        if LM_HEAD not in stored:
            stored[LM_HEAD] = target.lm_head_VH
        ids_D = torch.arange(config["draft_vocab_size"] or layer["vocab_size"])
        if "d2t" in stored:
            ids_D = ids_D + stored["d2t"]
        tensors = {
            name: tensor.float() for name, tensor in stored.items() if tensor.is_floating_point()
        }
        embedding_VH = tensors.get(EMBEDDING, target.embedding_VH)
        return cls(config, layer, tensors, embedding_VH, ids_D)

    def double(self: Plain) -> Plain:
        """The same in float64."""
        return replace(self, tensors={name: t.double() for name, t in self.tensors.items()})

    @property
    def aux_layers(self) -> tuple[int, ...]:
        return layer_ids(self.config) or ()

    @property
    def vocab_size(self) -> int:
        return len(self.embedding_VH)

    @torch.no_grad()
    def slots(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_slots: int
    ) -> Tensor:
        """Outputs of the last layer [N, B, H] at the starts [begin, end), end < T."""
        dtype = self.tensors["fc.weight"].dtype
        features_PH = self._linear("fc", aux_TLH[:end].flatten(1).to(dtype))
        context_PH = self._norm("hidden_norm", features_PH)
        starts_N = torch.arange(begin, end)
        ids_NB = torch.full((len(starts_N), num_slots), mask_token_of(self.config))
        ids_NB[:, 0] = input_ids_T[begin + 1 : end + 1]
        hidden = self.embedding_VH[ids_NB].to(dtype)
        of_context = self._angles(torch.arange(end), dtype)
        of_block = self._angles(starts_N[:, None] + 1 + torch.arange(num_slots), dtype)
        for number in range(self.layer["num_hidden_layers"]):
            name = f"layers.{number}.self_attn"
            normed = self._norm(f"layers.{number}.input_layernorm", hidden)
            context = self._keys(name, context_PH, of_context)
            query = self._turned(name, "q", normed, of_block)
            own = self._keys(name, normed, of_block)
            mixed = self._attend(query, context, own, starts_N)
            hidden = hidden + self._linear(f"{name}.o_proj", mixed.flatten(2))
            hidden = hidden + self._mlp(number, hidden)
        return hidden

    def _attend(
        self,
        query_NBAE: Tensor,
        context: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
        starts_N: Tensor,
    ) -> Tensor:
        """One softmax per slot, over the context and the own block."""
        num_slots, scale = query_NBAE.shape[1], query_NBAE.shape[-1] ** -0.5
        slots_B = torch.arange(num_slots)
        scores_NBAP = torch.einsum("nbae,pae->nbap", query_NBAE, context[0]) * scale
        scores_NBAC = torch.einsum("nbae,ncae->nbac", query_NBAE, own[0]) * scale
        places_P = torch.arange(len(context[0]))
        here_NB = starts_N[:, None] + 1 + slots_B
        unseen_NBP = (places_P > starts_N[:, None, None]).expand(-1, num_slots, -1)
        behind_BC = slots_B[:, None] - slots_B
        unseen_BC = behind_BC < 0 if nested(self.config)["causal"] else behind_BC > num_slots
        window = self.layer.get("sliding_window")
        if window is not None:
            unseen_NBP = unseen_NBP | (places_P <= here_NB[..., None] - window)
            unseen_BC = unseen_BC | (behind_BC >= window)
        scores_NBAP = scores_NBAP.masked_fill(unseen_NBP[:, :, None], -torch.inf)
        scores_NBAC = scores_NBAC.masked_fill(unseen_BC[:, None], -torch.inf)
        weights = torch.cat([scores_NBAP, scores_NBAC], dim=-1).softmax(-1)
        of_context, of_own = weights[..., : len(places_P)], weights[..., len(places_P) :]
        return torch.einsum("nbap,pae->nbae", of_context, context[1]) + torch.einsum(
            "nbac,ncae->nbae", of_own, own[1]
        )

    def _keys(self, name: str, inputs: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """Keys and values [..., A, E], the grouped ones repeated."""
        groups = self.layer["num_key_value_heads"]
        value = self._linear(f"{name}.v_proj", inputs).unflatten(-1, (groups, -1))
        key = self._turned(name, "k", inputs, angles)
        repeats = self.layer["num_attention_heads"] // groups
        return key.repeat_interleave(repeats, dim=-2), value.repeat_interleave(repeats, dim=-2)

    def _turned(self, name: str, which: str, inputs: Tensor, angles: Angles) -> Tensor:
        """Queries or keys [..., heads, E], normed per head, with rope."""
        projected = self._linear(f"{name}.{which}_proj", inputs)
        heads = projected.unflatten(-1, (-1, self.layer["head_dim"]))
        normed = self._norm(f"{name}.{which}_norm", heads)
        cos, sin = angles
        first, second = normed.chunk(2, dim=-1)
        return normed * cos + torch.cat([-second, first], dim=-1) * sin

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """cos and sin, for all heads alike: [..., 1, E]."""
        config = Qwen3Config(
            hidden_size=self.layer["num_attention_heads"] * self.layer["head_dim"],
            num_attention_heads=self.layer["num_attention_heads"],
            head_dim=self.layer["head_dim"],
            max_position_embeddings=self.layer["max_position_embeddings"],
            rope_parameters=dict(self.layer["rope_parameters"]),
        )
        places = positions.flatten()[None]
        cos, sin = Qwen3RotaryEmbedding(config)(torch.zeros(1, dtype=dtype), places)
        return cos.view(*positions.shape, 1, -1), sin.view(*positions.shape, 1, -1)

    def _mlp(self, number: int, hidden: Tensor) -> Tensor:
        name = f"layers.{number}"
        normed = self._norm(f"{name}.post_attention_layernorm", hidden)
        gate = torch.nn.functional.silu(self._linear(f"{name}.mlp.gate_proj", normed))
        up = self._linear(f"{name}.mlp.up_proj", normed)
        return self._linear(f"{name}.mlp.down_proj", gate * up)

    def _linear(self, name: str, inputs: Tensor) -> Tensor:
        return inputs @ self.tensors[f"{name}.weight"].T

    def _norm(self, name: str, inputs: Tensor) -> Tensor:
        mean_square = inputs.pow(2).mean(-1, keepdim=True)
        scaled = inputs * torch.rsqrt(mean_square + self.layer["rms_norm_eps"])
        return scaled * self.tensors[f"{name}.weight"]
