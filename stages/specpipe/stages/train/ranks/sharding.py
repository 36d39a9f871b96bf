"""Weights sharded over the ranks (FSDP2), and whole again for a checkpoint.

The drafter is one unit: gathered for a step, its gradients summed and scattered by every backward
pass. Between steps there are shards alone: of weights, gradients and the optimiser's state.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from specpipe.stages.train.ranks.ranks import Ranks


def shard(model: nn.Module, ranks: Ranks) -> None:
    """Shard a model's parameters in place."""
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    fully_shard(model, mesh=mesh)
    assert isinstance(model, FSDPModule)
    # Losses are over the denominators of the whole step: the gradients of the ranks add up.
    model.set_gradient_divide_factor(1.0)
    model.set_force_sum_reduction_for_comms(True)
    model.set_reshard_after_backward(False)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Have a model's weights whole inside: passes need no other rank then, but for backward."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    yield
    model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from its shards, on the CPU; every rank takes part."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous()


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor that every rank has, sharded as the parameter of its shape is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def whole_norm(norm: Tensor) -> Tensor:
    """The norm of all gradients, as a plain tensor."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
