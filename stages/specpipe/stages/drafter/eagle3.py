"""The EAGLE-3 drafter (arXiv 2503.01840), unrolled over its draft steps for training.

Parameter names are those of the artifact. The embedding is the target's, frozen, and no parameter.

Legend: T tokens, N starts, L aux layers, H hidden size, h query heads, g key/value heads,
E head size, K draft steps, D draft vocabulary.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specpipe.schemas.checkpoint import DrafterShape
from specpipe.stages.drafter.attention import chain_attention
from specpipe.stages.drafter.batch import Batch

KeyValue = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight in float32 (float64 for float64), whatever the dtype that comes in."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Rotary(nn.Module):
    """Rotary position embedding, the non-interleaved kind, from transformers' rope parameters."""

    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        config = LlamaConfig(
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.num_attention_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=shape.max_position_embeddings,
            rope_parameters=dict(shape.rope_parameters),
        )
        self.rope = LlamaRotaryEmbedding(config)

    def forward(self, positions_N: Tensor, dtype: torch.dtype) -> KeyValue:
        """cos and sin, each [N, 1, E]."""
        with torch.autocast(positions_N.device.type, enabled=False):
            like = torch.empty(0, dtype=dtype, device=positions_N.device)
            cos, sin = self.rope(like, positions_N.unsqueeze(0))
        return cos[0].unsqueeze(1), sin[0].unsqueeze(1)


def rotate(x_NhE: Tensor, cos_sin: KeyValue) -> Tensor:
    cos, sin = cos_sin
    first, second = x_NhE.chunk(2, dim=-1)
    return (x_NhE * cos + torch.cat([-second, first], dim=-1) * sin).to(x_NhE.dtype)


class Attention(nn.Module):
    """Projections of the 2H-wide attention input."""

    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(2 * shape.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(2 * shape.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(2 * shape.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)

    def keys_values(self, x_N2H: Tensor, cos_sin: KeyValue) -> KeyValue:
        keys = self._heads(self.k_proj(x_N2H))
        return rotate(keys, cos_sin), self._heads(self.v_proj(x_N2H))

    def queries(self, x_N2H: Tensor, cos_sin: KeyValue) -> Tensor:
        return rotate(self._heads(self.q_proj(x_N2H)), cos_sin)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), x.shape[-1] // self.head_dim, self.head_dim)


class Mlp(nn.Module):
    """Gated MLP with SiLU."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """The one decoder layer: attention over [embedding; hidden], then an MLP."""

    def __init__(self, shape: DrafterShape) -> None:
        super().__init__()
        H, eps = shape.hidden_size, shape.rms_norm_eps
        self.input_layernorm = RMSNorm(H, eps)
        self.hidden_norm = RMSNorm(H, eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(H, eps)
        self.mlp = Mlp(H, shape.intermediate_size)
        self.norm_before_residual = shape.norm_before_residual

    def attention_input(self, embedded_NH: Tensor, hidden_NH: Tensor) -> tuple[Tensor, Tensor]:
        """The 2H-wide attention input, and the residual."""
        normed_NH = self.hidden_norm(hidden_NH)
        x_N2H = torch.cat([self.input_layernorm(embedded_NH), normed_NH], dim=-1)
        return x_N2H, normed_NH if self.norm_before_residual else hidden_NH

    def finish(self, attended_NhE: Tensor, residual_NH: Tensor) -> Tensor:
        hidden_NH = residual_NH + self.self_attn.o_proj(attended_NhE.flatten(1))
        out: Tensor = hidden_NH + self.mlp(self.post_attention_layernorm(hidden_NH))
        return out


class Eagle3(nn.Module):
    """EAGLE-3 over packed batches.

    `embed_tokens_VH` is the target's embedding, frozen.
    """

    embed_tokens_VH: Tensor

    def __init__(self, shape: DrafterShape, embed_tokens_VH: Tensor) -> None:
        super().__init__()
        self.shape = shape
        H, L, eps = shape.hidden_size, shape.num_aux, shape.rms_norm_eps
        if shape.norm_before_fc:
            self.input_norm = RMSNorm(L * H, eps)
        if shape.fc_norm:
            self.fc_norm = nn.ModuleList(RMSNorm(H, eps) for _ in range(L))
        self.fc = nn.Linear(L * H, H, bias=False)
        self.layers = nn.ModuleList([Layer(shape)])
        self.norm = RMSNorm(H, eps)
        self.lm_head = nn.Linear(H, shape.draft_vocab_size, bias=False)
        self.rotary = Rotary(shape)
        self.register_buffer("embed_tokens_VH", embed_tokens_VH, persistent=False)

    @property
    def layer(self) -> Layer:
        layer = self.layers[0]
        assert isinstance(layer, Layer)
        return layer

    def features(self, aux_TLH: Tensor) -> Tensor:
        """h0 [T, H] from the auxiliary states."""
        aux_TLH = aux_TLH.to(self.fc.weight.dtype)
        if self.shape.fc_norm:
            aux_TLH = torch.stack(
                [norm(aux_TLH[:, i]) for i, norm in enumerate(self.fc_norm)], dim=1
            )
        features_TF = aux_TLH.flatten(1)
        if self.shape.norm_before_fc:
            features_TF = self.input_norm(features_TF)
        out: Tensor = self.fc(features_TF)
        return out

    def embed(self, ids_N: Tensor) -> Tensor:
        return self.embed_tokens_VH[ids_N].to(self.fc.weight.dtype)

    def forward(self, batch: Batch) -> Tensor:
        """Input of the lm_head for every head and start: norm(o), [K, N, H].

        Head k is computed at every start, also where `batch.rows_KN` says that it is not used.
        """
        layer, last = self.layer, batch.num_tokens - 1
        attention = layer.self_attn
        starts_N, positions_N = batch.starts_N, batch.positions_T[batch.starts_N]

        # Step 1 at every position, for its keys: position i holds token x[i+1]. What the last
        # position of a sample holds is never seen: no start reaches that far.
        next_ids_T = batch.input_ids_T.roll(-1)
        x_T2H, residual_TH = layer.attention_input(
            self.embed(next_ids_T), self.features(batch.aux_TLH)
        )
        step_keys, step_values = attention.keys_values(
            x_T2H, self.rotary(batch.positions_T, x_T2H.dtype)
        )
        x_N2H, residual_NH = x_T2H[starts_N], residual_TH[starts_N]

        chain: list[KeyValue] = []
        outputs: list[Tensor] = []
        cos_sin = self.rotary(positions_N, x_N2H.dtype)
        for k in range(1, batch.num_heads + 1):
            attended_NhE = chain_attention(
                attention.queries(x_N2H, cos_sin), step_keys, step_values, chain, batch.spans
            )
            output_NH = layer.finish(attended_NhE, residual_NH)
            outputs.append(self.norm(output_NH))
            if k < batch.num_heads:
                fed_back_NH = outputs[-1] if self.shape.norm_output else output_NH
                ids_N = batch.input_ids_T[(starts_N + k + 1).clamp(max=last)]
                x_N2H, residual_NH = layer.attention_input(self.embed(ids_N), fed_back_NH)
                cos_sin = self.rotary(positions_N + k, x_N2H.dtype)
                chain.append(attention.keys_values(x_N2H, cos_sin))
        return torch.stack(outputs)
