"""EAGLE-3 and its losses in float64: dense, slow and obvious, written from the definitions alone.

One sample at a time; every start is computed at every position, over one mask that spells out all
keys of all steps; gradients are autograd's. Nothing here is shared with the drafter's own code.

Legend: T tokens of one sample, L aux layers, H hidden size, h query heads, g key/value heads,
E head size, K draft steps, V vocabulary, D draft vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.schemas.drafters.eagle3 import Eagle3Shape
from specpipe.stages.samples.batch import DrafterSample

Weights = Mapping[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rope(x_TnE: Tensor, positions_T: Tensor, theta: float) -> Tensor:
    """Dimensions e and e + E/2 are a plane, turned by position * theta^(-2e/E)."""
    half = x_TnE.shape[-1] // 2
    speeds = torch.tensor([theta ** (-2 * e / (2 * half)) for e in range(half)], dtype=x_TnE.dtype)
    angles = positions_T.to(x_TnE.dtype)[:, None, None] * speeds
    real, imaginary = x_TnE[..., :half], x_TnE[..., half:]
    return torch.cat(
        [
            real * angles.cos() - imaginary * angles.sin(),
            imaginary * angles.cos() + real * angles.sin(),
        ],
        dim=-1,
    )


def dense_mask(num_tokens: int, step: int, window: int | None) -> Tensor:
    """[T, step * T]: query i of a step sees step-1 keys j <= i, and of steps 2..step key i only.

    The query stands at position i + step - 1; a window leaves it the last `window` positions.
    """
    seen = torch.zeros(num_tokens, step * num_tokens, dtype=torch.bool)
    for i in range(num_tokens):
        for j in range(i + 1):
            seen[i, j] = window is None or i + step - 1 - j < window
        for s in range(1, step):
            seen[i, s * num_tokens + i] = True
    return seen


def hidden_states(
    weights: Weights,
    shape: Eagle3Shape,
    embed_VH: Tensor,
    input_ids: Sequence[int],
    aux_TLH: Tensor,
    num_heads: int,
) -> Tensor:
    """norm(o) of every step with every position of the sample as start: [K, T, H]."""
    T, eps, theta = len(input_ids), shape.rms_norm_eps, shape.rope_parameters["rope_theta"]
    E, group = shape.head_dim, shape.num_attention_heads // shape.num_key_value_heads

    features = [aux_TLH[:, layer_id] for layer_id in range(shape.num_aux)]
    if shape.fc_norm:
        features = [
            rms_norm(f, weights[f"fc_norm.{n}.weight"], eps) for n, f in enumerate(features)
        ]
    feature_TF = torch.cat(features, dim=-1)
    if shape.norm_before_fc:
        feature_TF = rms_norm(feature_TF, weights["input_norm.weight"], eps)
    hidden_TH = feature_TF @ weights["fc.weight"].T

    if "embed_proj.weight" in weights:
        embed_VH = embed_VH @ weights["embed_proj.weight"].T
    outputs: list[Tensor] = []
    keys: list[list[Tensor]] = [[] for _ in range(shape.num_layers)]
    values: list[list[Tensor]] = [[] for _ in range(shape.num_layers)]
    for k in range(1, num_heads + 1):
        # Beyond the end there is no token; such a start is not valid for this step.
        tokens = [input_ids[i + k] if i + k < T else 0 for i in range(T)]
        positions_T = torch.tensor([i + k - 1 for i in range(T)])
        seen = dense_mask(T, k, shape.sliding_window)
        for number in range(shape.num_layers):
            layer = {
                name.removeprefix(f"layers.{number}.").removesuffix(".weight"): weight
                for name, weight in weights.items()
                if name.startswith(f"layers.{number}.")
            }
            if number == 0:
                a_TH = rms_norm(embed_VH[tokens], layer["input_layernorm"], eps)
                b_TH = rms_norm(hidden_TH, layer["hidden_norm"], eps)
                x_TX = torch.cat([a_TH, b_TH], dim=-1)
                residual_TH = b_TH if shape.norm_before_residual else hidden_TH
            else:
                x_TX = rms_norm(hidden_TH, layer["input_layernorm"], eps)
                residual_TH = hidden_TH
            queries = (x_TX @ layer["self_attn.q_proj"].T).reshape(T, -1, E)
            own_keys = (x_TX @ layer["self_attn.k_proj"].T).reshape(T, -1, E)
            if shape.layer_type == "qwen3":
                queries = rms_norm(queries, layer["self_attn.q_norm"], eps)
                own_keys = rms_norm(own_keys, layer["self_attn.k_norm"], eps)
            queries = rope(queries, positions_T, theta)
            keys[number].append(rope(own_keys, positions_T, theta))
            values[number].append((x_TX @ layer["self_attn.v_proj"].T).reshape(T, -1, E))
            all_keys, all_values = torch.cat(keys[number]), torch.cat(values[number])
            heads = []
            for n in range(shape.num_attention_heads):
                scores = queries[:, n] @ all_keys[:, n // group].T / math.sqrt(E)
                probs = torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1)
                heads.append(probs @ all_values[:, n // group])
            mid_TH = residual_TH + torch.cat(heads, dim=-1) @ layer["self_attn.o_proj"].T
            m_TH = rms_norm(mid_TH, layer["post_attention_layernorm"], eps)
            gate = m_TH @ layer["mlp.gate_proj"].T
            up = m_TH @ layer["mlp.up_proj"].T
            hidden_TH = mid_TH + (gate * torch.sigmoid(gate) * up) @ layer["mlp.down_proj"].T
        outputs.append(rms_norm(hidden_TH, weights["norm.weight"], eps))
        if shape.norm_output:
            hidden_TH = outputs[-1]
    return torch.stack(outputs)


@dataclass(frozen=True)
class Row:
    """One head at one valid start: the two distributions and the data's token."""

    sample: int
    start: int
    head: int
    weight: float
    emitted: bool
    logq_D: Tensor
    logp_D: Tensor
    """log-probabilities under the whole vocabulary, of the draft vocabulary's tokens."""
    token: int
    token_draft: int | None
    token_logprob: float
    argmax: int
    argmax_drafted: int
    """The drafter's most likely token, as a target id."""

    @property
    def alpha(self) -> Tensor:
        return torch.minimum(self.logp_D.exp(), self.logq_D.exp()).sum()

    @property
    def lk(self) -> Tensor:
        return -torch.log(self.alpha)

    @property
    def mass(self) -> Tensor:
        return self.logp_D.exp().sum()

    @property
    def kl(self) -> Tensor:
        p_D = self.logp_D.exp() / self.mass
        return (p_D * (p_D.log() - self.logq_D)).sum()

    @property
    def ce(self) -> Tensor:
        return (
            self.logq_D.new_zeros(())
            if self.token_draft is None
            else -self.logq_D[self.token_draft]
        )

    @property
    def accept(self) -> float:
        if self.token_draft is None:
            return 0.0
        return min(
            1.0, math.exp(float(self.logq_D[self.token_draft].detach()) - self.token_logprob)
        )

    @property
    def greedy_match(self) -> bool:
        return self.argmax_drafted == self.argmax

    @property
    def greedy_text(self) -> bool:
        return self.argmax_drafted == self.token


def is_valid(loss_mask: Sequence[int], start: int, head: int) -> bool:
    """Whether every token that heads 1..head of this start predict is there and supervised."""
    targets = [start + k + 1 for k in range(1, head + 1)]
    return all(j < len(loss_mask) and loss_mask[j] == 1 for j in targets)


def verifier_row(loss_mask: Sequence[int], position: int) -> int:
    """Index of a position among the sample's verifier rows (positions whose next is supervised)."""
    return [j for j in range(len(loss_mask) - 1) if loss_mask[j + 1] == 1].index(position)


def rows_of_sample(
    number: int,
    sample: DrafterSample,
    hidden_KTH: Tensor,
    lm_head_DH: Tensor,
    logits_SD: Tensor,
    target_ids: Sequence[int],
) -> list[Row]:
    """Every valid (start, head) of one sample."""
    mask = [int(m) for m in sample.loss_mask]
    ids = [int(token) for token in sample.input_ids]
    states, rows = sample.states, []
    for start in range(len(ids)):
        for head in range(1, len(hidden_KTH) + 1):
            if not is_valid(mask, start, head):
                continue
            s, token = verifier_row(mask, start + head), ids[start + head + 1]
            logq_D = torch.log_softmax(lm_head_DH @ hidden_KTH[head - 1, start], dim=0)
            rows.append(
                Row(
                    sample=number,
                    start=start,
                    head=head,
                    weight=sample.weight,
                    emitted=mask[start + 1] == 1,
                    logq_D=logq_D,
                    logp_D=logits_SD[s] - float(states.logz_S[s]),
                    token=token,
                    token_draft=target_ids.index(token) if token in target_ids else None,
                    token_logprob=float(states.token_logprob_S[s]),
                    argmax=int(states.argmax_S[s]),
                    argmax_drafted=target_ids[int(logq_D.argmax())],
                )
            )
    return rows


def weighted_mean(rows: Sequence[Row], values: Sequence[Tensor]) -> Tensor:
    total = torch.stack([row.weight * value for row, value in zip(rows, values, strict=True)]).sum()
    return total / sum(row.weight for row in rows)


def reference_loss(
    rows: Sequence[Row], num_heads: int, loss: str, head_decay: float, eta: float
) -> Tensor:
    """Per head the weighted mean over its rows; heads weighted by decay^(k-1)."""
    total = torch.zeros((), dtype=torch.float64)
    for head in range(1, num_heads + 1):
        mine = [row for row in rows if row.head == head]
        if loss == "ce":
            mine = [row for row in mine if row.token_draft is not None]
        if not mine:
            continue
        alpha = weighted_mean(mine, [row.alpha for row in mine])
        kl = weighted_mean(mine, [row.kl for row in mine])
        lam = math.exp(-eta * float(alpha.detach()))
        value = {
            "kl": kl,
            "tv": 1 - alpha,
            "lk_alpha": weighted_mean(mine, [row.lk for row in mine]),
            "ce": weighted_mean(mine, [row.ce for row in mine]),
            "lk_hybrid": lam * kl + (1 - lam) * (1 - alpha),
        }[loss]
        total = total + head_decay ** (head - 1) * value
    return total


@dataclass(frozen=True)
class Expected:
    """What the reference says of a drafter on samples."""

    weights: dict[str, Tensor]
    """float64 leaves with the drafter's parameters."""
    hidden: list[Tensor]
    """[K, T, H] of each sample."""
    rows: list[Row]


def expect(
    parameters: Weights,
    shape: Eagle3Shape,
    embed_VH: Tensor,
    samples: Sequence[DrafterSample],
    verifier_VH: Tensor,
    target_ids: Sequence[int],
    num_heads: int,
) -> Expected:
    """Run the reference; the verifier is a linear head without a norm."""
    weights = {
        name: weight.detach().double().clone().requires_grad_()
        for name, weight in parameters.items()
    }
    hidden: list[Tensor] = []
    rows: list[Row] = []
    for number, sample in enumerate(samples):
        aux_TLH = torch.from_numpy(sample.states.aux_TLH).view(torch.bfloat16).double()
        final_SH = torch.from_numpy(sample.states.final_SH).view(torch.bfloat16).double()
        ids = [int(i) for i in sample.input_ids]
        hidden.append(hidden_states(weights, shape, embed_VH.double(), ids, aux_TLH, num_heads))
        logits_SD = final_SH @ verifier_VH.double()[list(target_ids)].T
        rows += rows_of_sample(
            number, sample, hidden[-1], weights["lm_head.weight"], logits_SD, target_ids
        )
    return Expected(weights, hidden, rows)
