"""The decoder layer of a target's family, transformers' own, with the drafter's attention inside.

Projections, norms, gates, rope, and the mixture of experts are the family's. Its attention class
asks transformers for a function by name, and gets ours, which is told by a keyword of the call
which keys there are besides its own.

Legend: T packed positions, N starts, X rows of either kind, h query heads, g key/value heads,
E head size, F size of a value's head.
"""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, PreTrainedConfig

from specpipe.schemas.drafters.mtp import MtpShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import AttentionName
from specpipe.stages.drafters.parts.attention.chain import chain_attention
from specpipe.stages.drafters.parts.attention.layout import Layout
from specpipe.stages.drafters.parts.norm import RMSNorm, ZeroCentredNorm
from specpipe.stages.target.files.model_config import build_config
from specpipe.stages.untrusted.foreign import foreign_call

KeyValue = tuple[Tensor, Tensor]

ATTENTION = "specpipe_chain"
"""Our function's name among transformers'."""

_CLASSES = {
    "mimo": ("qwen2", "Qwen2DecoderLayer", "Qwen2RotaryEmbedding"),
    "glm4_moe": ("glm4_moe", "Glm4MoeDecoderLayer", "Glm4MoeRotaryEmbedding"),
    # The engine's is a dense layer of Llama's, rope included.
    "ernie4_5_moe": ("llama", "LlamaDecoderLayer", "LlamaRotaryEmbedding"),
    "qwen3_next": ("qwen3_next", "Qwen3NextDecoderLayer", "Qwen3NextRotaryEmbedding"),
    "qwen3_5": ("qwen3_5", "Qwen3_5DecoderLayer", "Qwen3_5TextRotaryEmbedding"),
    "qwen3_5_moe": ("qwen3_5_moe", "Qwen3_5MoeDecoderLayer", "Qwen3_5MoeTextRotaryEmbedding"),
    "deepseek_v3": ("deepseek_v3", "DeepseekV3DecoderLayer", "DeepseekV3RotaryEmbedding"),
}

_NUMBERED_LAST = frozenset({"glm4_moe", "deepseek_v3"})
"""Families whose MTP layer is numbered as the one behind the target's last: the number decides
whether it is a mixture of experts."""

_OF_THE_LENGTH = frozenset({"dynamic", "longrope"})
"""Ropes whose angles depend on the longest text that was seen, of whatever sample."""


@dataclass(slots=True)
class Seen:
    """What a call of the attention sees besides its own rows, and the keys that it made.

    In the first step (`step_1` is None) the rows are all packed positions, and the queries those
    at the starts; in the others there is a row for each start.
    """

    layout: Layout
    starts_N: Tensor
    attention: AttentionName
    step_1: KeyValue | None = None
    chain: tuple[KeyValue, ...] = ()
    made: list[KeyValue] = field(default_factory=list)


def chained(
    module: nn.Module,
    query_1hXE: Tensor,
    key_1gXE: Tensor,
    value_1gXF: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    seen: Seen,
    **_: Any,
) -> tuple[Tensor, None]:
    """[1, X, h, F]; rows that are no queries are 0."""
    q, k, v = (x[0].transpose(0, 1) for x in (query_1hXE, key_1gXE, value_1gXF))
    size, size_of_value = q.shape[-1], v.shape[-1]
    k = k.to(v.dtype).contiguous()
    # The kernels have one size of heads, and its scale.
    q = (q * (scaling * size**0.5)).to(v.dtype)
    v = nn.functional.pad(v, (0, size - size_of_value)).contiguous()
    seen.made.append((k, v))
    if seen.step_1 is None:
        out_NhE = chain_attention(
            q[seen.starts_N].contiguous(), (k, v), (), seen.layout, None, seen.attention
        )
        out_XhE = out_NhE.new_zeros(q.shape).index_copy(0, seen.starts_N, out_NhE)
    else:
        chain = (*seen.chain, (k, v))
        out_XhE = chain_attention(
            q.contiguous(), seen.step_1, chain, seen.layout, None, seen.attention
        )
    return out_XhE[None, :, :, :size_of_value], None


AttentionInterface.register(ATTENTION, chained)


def target_config(shape: MtpShape) -> PreTrainedConfig:
    """The target's, as transformers has it."""
    raw = json.loads(json.dumps(shape.target_config))
    return build_config(raw, "the config of the drafter's target", ConfigError)


def layer_config(shape: MtpShape) -> PreTrainedConfig:
    """The settings of the MTP layer; raises ConfigError for a layer that is none of ours."""
    config: Any = deepcopy(target_config(shape).get_text_config(decoder=True))
    rope = dict(config.rope_parameters)
    if rope.get("rope_type", "default") in _OF_THE_LENGTH:
        raise ConfigError(
            f"drafter mtp: the target's rope is {rope['rope_type']}, whose angles depend on the"
            " longest text of a batch"
        )
    if shape.family == "ernie4_5_moe":
        config = LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None),
            hidden_act=config.hidden_act,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
        )
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = ["full_attention"] * len(kinds)
    if shape.family == "mimo" and "sliding_attention" in (kinds or ()):
        raise ConfigError("drafter mtp: a sliding window of the target is not supported")
    config._attn_implementation = ATTENTION
    config._experts_implementation = "eager"
    return config  # type: ignore[no-any-return]


class TargetLayer(nn.Module):
    """One decoder layer; parameter names below `layer` are transformers'."""

    def __init__(self, shape: MtpShape, attention: AttentionName) -> None:
        super().__init__()
        config = layer_config(shape)
        folder, layer, rotary = _CLASSES[shape.family]
        module = import_module(f"transformers.models.{folder}.modeling_{folder}")
        number = shape.num_target_layers if shape.family in _NUMBERED_LAST else 0
        with foreign_call("transformers cannot build the target's layer", ConfigError):
            self.layer: Any = getattr(module, layer)(config, number)
            self.rotary: Any = getattr(module, rotary)(config)
        self.attention: AttentionName = attention
        _with_own_norms(self.layer, adds_one=shape.of.norm_adds_one)

    def angles(self, positions_X: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, each [1, X, E]."""
        with torch.autocast(positions_X.device.type, enabled=False):
            like = torch.empty(0, dtype=dtype, device=positions_X.device)
            cos, sin = self.rotary(like, positions_X.unsqueeze(0))
        return cos, sin

    def first_step(
        self,
        hidden_TH: Tensor,
        angles: tuple[Tensor, Tensor],
        starts_N: Tensor,
        layout: Layout,
    ) -> tuple[Tensor, KeyValue]:
        """Output [N, H] at the starts, and the keys and values of all positions."""
        seen = Seen(layout, starts_N, self.attention)
        attended_TH = self._attend(hidden_TH, angles, seen)
        return self._finish(hidden_TH[starts_N] + attended_TH[starts_N]), seen.made[0]

    def next_step(
        self,
        hidden_NH: Tensor,
        angles: tuple[Tensor, Tensor],
        starts_N: Tensor,
        layout: Layout,
        step_1: KeyValue,
        chain: tuple[KeyValue, ...],
    ) -> tuple[Tensor, KeyValue]:
        """Output [N, H], and the step's key and value, which the chain gains."""
        seen = Seen(layout, starts_N, self.attention, step_1, chain)
        attended_NH = self._attend(hidden_NH, angles, seen)
        return self._finish(hidden_NH + attended_NH), seen.made[0]

    def _attend(self, hidden_XH: Tensor, angles: tuple[Tensor, Tensor], seen: Seen) -> Tensor:
        normed_1XH = self.layer.input_layernorm(hidden_XH)[None]
        out, _ = self.layer.self_attn(
            normed_1XH, position_embeddings=angles, attention_mask=None, seen=seen
        )
        attended_XH: Tensor = out[0]
        return attended_XH

    def _finish(self, hidden_NH: Tensor) -> Tensor:
        out = self.layer.mlp(self.layer.post_attention_layernorm(hidden_NH)[None])
        added_1NH: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden_NH + added_1NH[0]


def rms_norm(size: int, eps: float, *, adds_one: bool) -> RMSNorm:
    return (ZeroCentredNorm if adds_one else RMSNorm)(size, eps)


def _with_own_norms(layer: nn.Module, *, adds_one: bool) -> None:
    """Norms of ours in place of transformers', which round to float32 in float64."""
    for name, module in list(layer.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
            assert isinstance(eps, float)
            own = rms_norm(len(module.weight), eps, adds_one=adds_one)
            layer.set_submodule(name, own)
