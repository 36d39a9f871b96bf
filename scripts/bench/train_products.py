"""The matrix products of some training steps, seen as they run, and then run again alone.

What they take alone is the floor of the steps: whatever else a step does comes on top. They run
with the shapes, strides, dtypes and threads of the step, on random numbers.
"""

import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_FACTORS = {_aten.mm: 0, _aten.bmm: 0, _aten.addmm: 1, _aten.addmm_: 1, _aten.baddbmm: 1}
"""The products, and where the first of an operator's two factors stands."""

_ROUNDS = 3

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]
Argument = Layout | Any


class Products(TorchDispatchMode):
    """Within, every matrix product is noted; what attention kernels multiply inside is not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: Counter[tuple[Callable[..., Any], tuple[Argument, ...], Any]] = Counter()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in _FACTORS:
            named = tuple(sorted((name, _layout(value)) for name, value in kwargs.items()))
            self._seen[func, tuple(map(_layout, args)), named] += 1
            first, second = args[_FACTORS[packet] :][:2]
            self.flops += 2 * first.numel() * second.shape[-1]
            return func(*args, **kwargs)
        with self:
            parts = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if parts is NotImplemented else parts

    def alone(self) -> tuple[float, float]:
        """Seconds and CPU seconds of all of them, each kind by its median of a few times."""
        made: dict[tuple[int | str, Layout], Tensor] = {}
        total = cpu_total = 0.0
        for (func, args, kwargs), times in self._seen.items():
            inputs = [_operand(made, at, value) for at, value in enumerate(args)]
            named = {name: _operand(made, name, value) for name, value in kwargs}
            took = [_seconds(func, inputs, named) for _ in range(_ROUNDS + 1)]
            total += times * median(wall for wall, _ in took[1:])
            cpu_total += times * median(cpu for _, cpu in took[1:])
        return total, cpu_total


def _layout(value: Any) -> Argument:
    if not isinstance(value, Tensor):
        return value
    return tuple(value.shape), tuple(value.stride()), value.dtype, value.device


def _operand(
    made: dict[tuple[int | str, Layout], Tensor], place: int | str, value: Argument
) -> Any:
    """A tensor of the layout; one for all products that have it at the same place."""
    if not (isinstance(value, tuple) and len(value) == 4 and isinstance(value[2], torch.dtype)):
        return value
    shape, stride, dtype, device = value
    if (place, value) not in made:
        made[place, value] = torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_(
            std=0.01
        )
    return made[place, value]


def _seconds(
    func: Callable[..., Any], inputs: list[Any], named: dict[str, Any]
) -> tuple[float, float]:
    began = time.perf_counter(), time.process_time()
    func(*inputs, **named)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began[0], time.process_time() - began[1]
