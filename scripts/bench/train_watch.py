"""A closer look at some of our steps: where their time goes, and their matrix products alone."""

from collections import defaultdict
from contextlib import ExitStack

import torch
from torch.profiler import ProfilerActivity, profile

from scripts.bench.paced import Values
from scripts.bench.train_products import Products

KINDS = (
    "matrix products with the vocabulary",
    "other matrix products",
    "elementwise on rows of the vocabulary",
    "other elementwise",
    "attention kernels",
    "optimiser and clipping",
)

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
_ATTENTION = ("flash", "efficient_attention", "fmha", "mem_eff")
_OPTIMISER = ("adam", "_foreach", "muon", "Optimizer")
_MOST_HOT = 15


class StepWatch:
    """Asked with `watch`: "profile" (and `vocab`, the draft vocabulary's size) or "products"."""

    def __init__(self) -> None:
        self._profile: profile | None = None
        self._products: Products | None = None
        self._entered = ExitStack()

    def begin(self, request: Values) -> None:
        match request.get("watch"):
            case "profile":
                # Both, where there are both: the device's own is only counted where there is one.
                on = [ProfilerActivity.CPU]
                if torch.cuda.is_available():
                    on.append(ProfilerActivity.CUDA)
                self._profile = profile(activities=on, record_shapes=True)
                self._profile.start()
            case "products":
                self._products = Products()
                self._entered.enter_context(self._products)

    def end(self, request: Values) -> Values:
        if self._profile is not None:
            self._profile.stop()
            found, self._profile = self._profile, None
            return _where(found, request["vocab"])
        if self._products is not None:
            seen, self._products = self._products, None
            self._entered.close()
            floor, cpu_floor = seen.alone()
            return {"floor": floor, "cpu_floor": cpu_floor, "flops": seen.flops}
        return {}


def _where(found: profile, vocab: int) -> Values:
    """Seconds by kind, and the operators that take most."""
    kinds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    hot: dict[str, float] = defaultdict(float)
    for event in found.key_averages(group_by_input_shape=True):
        seconds = (
            event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        ) / 1e6
        shapes = [shape for shape in event.input_shapes or [] if isinstance(shape, list)]
        is_wide = any(vocab in shape for shape in shapes)
        kinds[_kind(event.key, is_wide)] += seconds
        hot[f"{event.key} {shapes if is_wide else ''}"] += seconds
    most = sorted(hot.items(), key=lambda pair: -pair[1])[:_MOST_HOT]
    return {"kinds": kinds, "hot": most}


def _kind(name: str, is_wide: bool) -> str:
    if name in _PRODUCTS:
        return KINDS[0] if is_wide else KINDS[1]
    if any(part in name for part in _ATTENTION):
        return KINDS[4]
    if any(part in name for part in _OPTIMISER):
        return KINDS[5]
    return KINDS[2] if is_wide else KINDS[3]
