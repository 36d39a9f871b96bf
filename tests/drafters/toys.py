"""Small random samples, drafters and verifiers, and a watch on what torch allocates.

Legend: T tokens, S verifier rows, L aux layers, H hidden size, V vocabulary, D draft vocabulary.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specpipe.schemas.drafters.base import LayerShape
from specpipe.schemas.drafters.eagle3 import Eagle3Shape
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.drafters.eagle3.model import Eagle3
from specpipe.stages.samples.batch import Batch, DrafterSample, make_batch
from specpipe.stages.storage.shard.states import SampleStates

V, H, L, THETA = 23, 12, 3, 50.0
DRAFT_IDS = [1, 2, 5, 6, 9, 11, 14, 17, 22]


@dataclass(frozen=True)
class Given:
    """A target's tensors."""

    embedding_VH: torch.Tensor
    lm_head_VH: torch.Tensor
    final_norm: nn.Module = field(default_factory=nn.Identity)

    @property
    def final_norm_H(self) -> torch.Tensor:
        return torch.ones(self.lm_head_VH.shape[1])


def shape_of(draft_vocab_size: int = V, **changes: object) -> Eagle3Shape:
    """A tiny drafter: 4 query heads on 2 key/value heads, and a small theta so that rope bites."""
    flags = dict.fromkeys(
        ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"), False
    )
    shape = Eagle3Shape(
        hidden_size=H,
        intermediate_size=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        max_position_embeddings=64,
        vocab_size=V,
        draft_vocab_size=draft_vocab_size,
        aux_layers=(1, 2, 4),
        **flags,
    )
    return shape.model_copy(update=changes)


class ExactRotary(nn.Module):
    """The drafter's rope tables in float64 (transformers computes them in float32)."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.theta, self.head_dim = shape.rope_parameters["rope_theta"], shape.head_dim

    def forward(self, positions_N: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        angles = positions_N.double()[:, None] * self.theta**-exponents
        both = torch.cat([angles, angles], dim=-1).unsqueeze(1)
        return both.cos().to(dtype), both.sin().to(dtype)


def random_drafter(shape: Eagle3Shape, seed: int, **options: Any) -> Eagle3:
    """float32, every parameter random (norm weights too), logits wide enough to matter."""
    torch.manual_seed(seed)
    model = Eagle3(shape, torch.randn(V, H), **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(0, 1.2 / parameter.shape[-1] ** 0.5)
    return model


def bf16(x: Tensor) -> "np.ndarray[Any, np.dtype[np.uint16]]":
    return x.to(torch.bfloat16).view(torch.uint16).numpy()


def random_sample(
    loss_mask: Sequence[int],
    lm_head_VH: Tensor,
    seed: int,
    weight: float = 1.0,
    *,
    num_aux: int = L,
) -> DrafterSample:
    """Random states; log Z, log-probabilities and argmax are the verifier's on all of V."""
    generator = torch.Generator().manual_seed(seed)
    T, rows = len(loss_mask), sum(loss_mask[1:])
    input_ids = torch.randint(V, (T,), generator=generator)
    final_SH = torch.randn(rows, H, generator=generator).bfloat16()
    logits_SV = final_SH.double() @ lm_head_VH.double().T
    logprobs_SV = torch.log_softmax(logits_SV, dim=-1)
    next_S = input_ids[1:][torch.tensor(loss_mask[1:], dtype=torch.bool)]
    return DrafterSample(
        input_ids=input_ids.to(torch.int32).numpy(),
        loss_mask=np.array(loss_mask, dtype=np.uint8),
        states=SampleStates(
            aux_TLH=bf16(torch.randn(T, num_aux, H, generator=generator)),
            final_SH=bf16(final_SH),
            logz_S=torch.logsumexp(logits_SV, dim=-1).float().numpy(),
            token_logprob_S=logprobs_SV.gather(1, next_S[:, None])[:, 0].float().numpy(),
            argmax_S=logits_SV.argmax(-1).to(torch.int32).numpy(),
        ),
        weight=weight,
    )


def random_samples(
    masks: Sequence[Sequence[int]], lm_head_VH: Tensor, seed: int = 0
) -> list[DrafterSample]:
    """Samples with multiplicities 1, 2, 3, 1, ..."""
    return [
        random_sample(mask, lm_head_VH, 1000 * seed + n, weight=1.0 + n % 3)
        for n, mask in enumerate(masks)
    ]


def double_batch(samples: Sequence[DrafterSample], num_heads: int) -> Batch:
    """A batch whose weights are float64, so that nothing of the loss is rounded to float32."""
    batch = make_batch(samples, num_heads)
    return replace(batch, weights_N=batch.weights_N.double())


def verifier_of(lm_head_VH: Tensor, target_ids: Sequence[int]) -> Verifier:
    """The verifier's head (no norm, which is not the drafter's business) on the draft rows."""
    ids = torch.tensor(target_ids)
    draft_ids_V = torch.full((len(lm_head_VH),), -1)
    draft_ids_V[ids] = torch.arange(len(ids))
    return Verifier(
        logits=lambda final_RH: final_RH.to(lm_head_VH.dtype) @ lm_head_VH[ids].T,
        draft_ids_V=draft_ids_V,
        target_ids_D=ids,
    )


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operator returned."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return out


@contextmanager
def bytes_at_once() -> Iterator[list[int]]:
    """The most bytes that torch's CPU allocator had given out since the beginning."""
    most = [0]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield most
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    most[0] = max(accumulate(event.nbytes() for event in events), default=0)


@contextmanager
def bytes_saved() -> Iterator[list[int]]:
    """Bytes of each distinct storage that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}
    total = [0]

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        total[0] = sum(kept.values())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield total


def assert_slopes(
    loss: Callable[[], Tensor],
    model: nn.Module,
    rel: float,
    absolute: float = 0.0,
    leave_out: Collection[str] = (),
) -> None:
    """Each parameter's gradient along a random direction is the slope of the loss there; the model
    is in float64."""
    loss().backward()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name in leave_out:
            continue
        assert parameter.grad is not None, name
        along = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        around = []
        with torch.no_grad():
            for step in (1e-5, -2e-5, 1e-5):
                parameter.add_(along, alpha=step)
                around.append(float(loss()))
        slope = (around[0] - around[1]) / 2e-5
        found = float((parameter.grad * along).sum())
        assert math.isclose(found, slope, rel_tol=rel, abs_tol=absolute), (name, found, slope)
