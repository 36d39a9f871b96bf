"""One attention block with its log-sum-exp, forward and backward, by the device's own kernel.

CPU: torch's flash kernel. CUDA: torch's flash kernel in half precision, its memory-efficient
kernel in float32. float64 (reference and tests): written out.

Legend: q queries, k keys, h query heads, g key/value heads, E head size.
"""

import torch
from torch import Tensor

_ops = torch.ops.aten


def flash_forward(
    q_qhE: Tensor, k_kgE: Tensor, v_kgE: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [q, h, E] and log-sum-exp float32 [q, h] of softmax(q k^T * scale) v.

    `causal` asks for a square block: query j sees keys 0..j.
    """
    num_heads = q_qhE.shape[1]
    q, k, v = _heads_first(q_qhE), _heads_first(k_kgE, num_heads), _heads_first(v_kgE, num_heads)
    if q.dtype == torch.float64:
        scores = _scores(q, k, causal, scale)
        out, lse = torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1)
    elif q.device.type == "cpu":
        out, lse = _ops._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
    elif q.dtype == torch.float32:
        out, lse, _, _ = _ops._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, causal, scale=scale
        )
    else:
        out, lse, *_ = _ops._scaled_dot_product_flash_attention(
            q, k, v, 0.0, causal, False, scale=scale
        )
    # The memory-efficient kernel pads its log-sum-exp to a multiple of 32 queries.
    return out[0].transpose(0, 1), lse[0, :, : q.shape[2]].transpose(0, 1)


def flash_backward(
    dout_qhE: Tensor,
    q_qhE: Tensor,
    k_kgE: Tensor,
    v_kgE: Tensor,
    out_qhE: Tensor,
    lse_qh: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [q, h, E], k and v [k, g, E] for a given output and log-sum-exp.

    `out` and `lse` may be those of a larger softmax of which this block is a part.
    """
    num_heads, num_kv = q_qhE.shape[1], k_kgE.shape[1]
    q, k, v = _heads_first(q_qhE), _heads_first(k_kgE, num_heads), _heads_first(v_kgE, num_heads)
    out, dout = _heads_first(out_qhE), _heads_first(dout_qhE)
    lse = lse_qh.transpose(0, 1).unsqueeze(0).contiguous()
    if q.dtype == torch.float64:
        probs = torch.exp(_scores(q, k, causal, scale) - lse.unsqueeze(-1))
        dprobs = dout @ v.transpose(-1, -2)
        dscores = probs * (dprobs - (dout * out).sum(-1, keepdim=True)) * scale
        dq, dk, dv = dscores @ k, dscores.transpose(-1, -2) @ q, probs.transpose(-1, -2) @ dout
    elif q.device.type == "cpu":
        dq, dk, dv = _ops._scaled_dot_product_flash_attention_for_cpu_backward(
            dout, q, k, v, out, lse, 0.0, causal, scale=scale
        )
    elif q.dtype == torch.float32:
        padding = -lse.shape[-1] % 32
        lse = torch.nn.functional.pad(lse, (0, padding), value=torch.inf)
        unused = torch.zeros((), dtype=torch.int64, device="cpu")
        dq, dk, dv, _ = _ops._scaled_dot_product_efficient_attention_backward(
            dout, q, k, v, None, out, lse, unused, unused, 0.0,
            [True, True, True, False], causal, scale=scale,
        )  # fmt: skip
    else:
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)
        dq, dk, dv = _ops._scaled_dot_product_flash_attention_backward(
            dout, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal,
            unused, unused, scale=scale,
        )  # fmt: skip
    return (
        dq[0].transpose(0, 1),
        _sum_groups(dk[0].transpose(0, 1), num_kv),
        _sum_groups(dv[0].transpose(0, 1), num_kv),
    )


def _heads_first(x_ngE: Tensor, num_heads: int | None = None) -> Tensor:
    """[1, h, n, E], contiguous, key/value heads repeated for the queries of their group."""
    x = x_ngE.transpose(0, 1)
    if num_heads is not None and num_heads != len(x):
        x = x.repeat_interleave(num_heads // len(x), dim=0)
    return x.unsqueeze(0).contiguous()


def _sum_groups(x_khE: Tensor, num_kv: int) -> Tensor:
    n, h, E = x_khE.shape
    return x_khE.reshape(n, num_kv, h // num_kv, E).sum(2)


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    scores = q @ k.transpose(-1, -2) * scale
    if causal:
        n = scores.shape[-1]
        hidden = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores
