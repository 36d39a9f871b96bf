"""The layers of the MTP families, written down plainly: dense attention, experts one by one.

The second implementation's half: nothing here is the trained drafter's. Settings are read by
transformers' config class, which knows the defaults; angles are transformers' own.

Legend: N rows, P real rows, C steps of a chain, H hidden size, A query heads, G key/value heads,
E head size, F size of a value's head, R turned part of a head, X experts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

Keys = list[tuple[Tensor, Tensor]]
"""(key, value) of each step: of step 1 [P, G, E] at all positions, then [N, G, E]."""

_LATENT_EPS = 1e-6
"""Of the norms inside DeepSeek's attention, whatever the config says."""


@dataclass(frozen=True, slots=True)
class PlainLayer:
    """`tensors` are the layer's, named as behind `layers.0.` of a checkpoint."""

    kind: str
    settings: Any
    tensors: dict[str, Tensor]

    @property
    def adds_one(self) -> bool:
        return self.kind.startswith("qwen3")

    def forward(
        self, hidden_NH: Tensor, positions_N: Tensor, starts_N: Tensor, keys: Keys
    ) -> Tensor:
        """Output [N, H]; the rows' keys join those that are there."""
        normed_NH = self._norm("input_layernorm", hidden_NH)
        of = self._latent if self.kind == "deepseek_v3" else self._projected
        query_NAE, key_NGE, value_NGF, gate = of(normed_NH, positions_N)
        keys.append((key_NGE, value_NGF))
        mixed_NAF = attend(query_NAE, starts_N, keys, self._scale(query_NAE.shape[-1]))
        mixed = mixed_NAF.flatten(1)
        if gate is not None:
            mixed = mixed * gate.sigmoid()
        hidden_NH = hidden_NH + self._linear("self_attn.o_proj", mixed)
        normed_NH = self._norm("post_attention_layernorm", hidden_NH)
        return hidden_NH + self._mlp(normed_NH)

    def _projected(
        self, normed_NH: Tensor, positions_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        of = self.settings
        size = getattr(of, "head_dim", None) or of.hidden_size // of.num_attention_heads
        query = self._linear("self_attn.q_proj", normed_NH).unflatten(
            1, (of.num_attention_heads, -1)
        )
        gate = None
        if self.adds_one:
            gate, query = query[..., size:].flatten(1), query[..., :size]
        groups = (of.num_key_value_heads, size)
        key = self._linear("self_attn.k_proj", normed_NH).unflatten(1, groups)
        value = self._linear("self_attn.v_proj", normed_NH).unflatten(1, groups)
        if "self_attn.q_norm.weight" in self.tensors:
            query = self._norm("self_attn.q_norm", query)
            key = self._norm("self_attn.k_norm", key)
        turned = int(size * (of.rope_parameters.get("partial_rotary_factor") or 1.0))
        angles = self._angles(positions_N, turned, query.dtype)
        return turn(query, *angles), turn(key, *angles), value, gate

    def _latent(
        self, normed_NH: Tensor, positions_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        of = self.settings
        if of.q_lora_rank is None:
            query = self._linear("self_attn.q_proj", normed_NH)
        else:
            low = self._linear("self_attn.q_a_proj", normed_NH)
            low = self._norm("self_attn.q_a_layernorm", low, _LATENT_EPS)
            query = self._linear("self_attn.q_b_proj", low)
        heads, plain, turned = of.num_attention_heads, of.qk_nope_head_dim, of.qk_rope_head_dim
        query = query.unflatten(1, (heads, -1))
        both = self._linear("self_attn.kv_a_proj_with_mqa", normed_NH)
        low, rope = both[:, : of.kv_lora_rank], both[:, None, of.kv_lora_rank :]
        low = self._norm("self_attn.kv_a_layernorm", low, _LATENT_EPS)
        pair = self._linear("self_attn.kv_b_proj", low).unflatten(1, (heads, -1))
        angles = self._angles(positions_N, turned, query.dtype)
        query_rope = turn(self._sorted(query[..., plain:]), *angles)
        rope = turn(self._sorted(rope), *angles).expand(-1, heads, -1)
        query = torch.cat([query[..., :plain], query_rope], dim=-1)
        key = torch.cat([pair[..., :plain], rope], dim=-1)
        return query, key, pair[..., plain:], None

    def _sorted(self, rope: Tensor) -> Tensor:
        """Pairs of neighbours as two halves."""
        if not self.settings.rope_interleave:
            return rope
        return torch.cat([rope[..., 0::2], rope[..., 1::2]], dim=-1)

    def _scale(self, size: int) -> float:
        scale = size**-0.5
        rope = self.settings.rope_parameters
        all_dim = rope.get("mscale_all_dim")
        if self.kind == "deepseek_v3" and all_dim and rope.get("rope_type") != "default":
            factor = float(rope["factor"])
            by = 0.1 * all_dim * torch.tensor(factor).log().item() + 1 if factor > 1 else 1.0
            scale *= by * by
        return float(scale)

    def _angles(
        self, positions_N: Tensor, turned: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """cos and sin, each [N, 1, R]."""
        rope = dict(self.settings.rope_parameters)
        for key in ("partial_rotary_factor", "mrope_section", "mrope_interleaved"):
            rope.pop(key, None)
        config = LlamaConfig(
            hidden_size=turned,
            num_attention_heads=1,
            head_dim=turned,
            max_position_embeddings=self.settings.max_position_embeddings,
            rope_parameters=rope,
        )
        like = torch.empty(0, dtype=dtype)
        cos_1NR, sin_1NR = LlamaRotaryEmbedding(config)(like, positions_N[None])
        return cos_1NR[0, :, None], sin_1NR[0, :, None]

    def _mlp(self, normed_NH: Tensor) -> Tensor:
        if "mlp.gate.weight" not in self.tensors:
            return self._gated("mlp", normed_NH)
        chosen_NX = self._chosen(normed_NH)
        shared = "shared_expert" if self.adds_one else "shared_experts"
        out_NH = self._gated(f"mlp.{shared}", normed_NH)
        if self.adds_one:
            out_NH = out_NH * self._linear("mlp.shared_expert_gate", normed_NH).sigmoid()
        for expert, weight_N in enumerate(chosen_NX.T):
            out_NH = out_NH + weight_N[:, None] * self._gated(f"mlp.experts.{expert}", normed_NH)
        return out_NH

    def _chosen(self, normed_NH: Tensor) -> Tensor:
        """Each expert's weight [N, X], 0 for those that are not chosen; in float32, as routers have
        it."""
        of, gate_XH = self.settings, self.tensors["mlp.gate.weight"]
        if self.adds_one:
            probs_NX = (normed_NH @ gate_XH.T).softmax(-1, dtype=torch.float32)
            best_NX = _largest(probs_NX, of.num_experts_per_tok)
            kept_NX = probs_NX * best_NX
            return (kept_NX / kept_NX.sum(-1, keepdim=True)).to(normed_NH.dtype)
        scores_NX = (normed_NH.float() @ gate_XH.float().T).sigmoid()
        rank_NX = scores_NX + self.tensors["mlp.gate.e_score_correction_bias"].float()
        groups = rank_NX.unflatten(1, (of.n_group, -1))
        of_group = groups.topk(2, dim=-1).values.sum(-1)
        open_NX = _largest(of_group, of.topk_group).repeat_interleave(groups.shape[-1], dim=1)
        best_NX = _largest(rank_NX.masked_fill(~open_NX, -torch.inf), of.num_experts_per_tok)
        kept_NX = scores_NX * best_NX
        if of.norm_topk_prob:
            kept_NX = kept_NX / (kept_NX.sum(-1, keepdim=True) + 1e-20)
        scaled_NX: Tensor = kept_NX * of.routed_scaling_factor
        return scaled_NX.to(normed_NH.dtype)

    def _gated(self, name: str, normed_NH: Tensor) -> Tensor:
        gate: Tensor = ACT2FN[self.settings.hidden_act](
            self._linear(f"{name}.gate_proj", normed_NH)
        )
        return self._linear(f"{name}.down_proj", gate * self._linear(f"{name}.up_proj", normed_NH))

    def _linear(self, name: str, inputs: Tensor) -> Tensor:
        out = inputs @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return out if bias is None else out + bias

    def _norm(self, name: str, inputs: Tensor, eps: float | None = None) -> Tensor:
        eps = self.settings.rms_norm_eps if eps is None else eps
        return normed(inputs, self.tensors[f"{name}.weight"], eps, self.adds_one)


def normed(inputs: Tensor, weight_H: Tensor, eps: float, adds_one: bool = False) -> Tensor:
    scaled = inputs * torch.rsqrt(inputs.pow(2).mean(-1, keepdim=True) + eps)
    return scaled * (weight_H + 1 if adds_one else weight_H)


def turn(vectors_NAE: Tensor, cos_N1R: Tensor, sin_N1R: Tensor) -> Tensor:
    """Rotary embedding of halves on the first R numbers of each head."""
    size = cos_N1R.shape[-1]
    part, rest = vectors_NAE[..., :size], vectors_NAE[..., size:]
    first, second = part.chunk(2, dim=-1)
    turned = part * cos_N1R + torch.cat([-second, first], dim=-1) * sin_N1R
    return torch.cat([turned, rest], dim=-1)


def attend(query_NAE: Tensor, starts_N: Tensor, keys: Keys, scale: float) -> Tensor:
    """[N, A, F]: over the step-1 keys of positions <= start, and each start's own chain."""
    per_group = query_NAE.shape[1] // keys[0][0].shape[1]
    (key_PAE, value_PAF), *chain = (
        (key.repeat_interleave(per_group, 1), value.repeat_interleave(per_group, 1))
        for key, value in keys
    )
    scores_ANP = torch.einsum("nae,pae->anp", query_NAE, key_PAE) * scale
    unseen_NP = torch.arange(len(key_PAE)) > starts_N[:, None]
    scores = [scores_ANP.masked_fill(unseen_NP, -torch.inf)]
    scores += [torch.einsum("nae,nae->an", query_NAE, key)[..., None] * scale for key, _ in chain]
    weights = torch.cat(scores, dim=-1).softmax(-1)
    out = torch.einsum("anp,paf->naf", weights[..., : len(key_PAE)], value_PAF)
    for step, (_, value_NAF) in enumerate(chain):
        weight_NA = weights[..., len(key_PAE) + step].T
        out = out + weight_NA[..., None] * value_NAF
    return out


def _largest(values: Tensor, count: int) -> Tensor:
    """bool: where the `count` largest of each row are."""
    return torch.zeros_like(values).scatter(-1, values.topk(count, dim=-1).indices, 1).bool()
