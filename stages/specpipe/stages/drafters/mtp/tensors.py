"""The tensors of an MTP artifact from those of a checkpoint, and back.

Ours are named as the target's checkpoint names them, without a leading `model.`; each expert of a
mixture has tensors of its own, where transformers has all of a kind in one.

Legend: N experts, I width of an expert, H hidden size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from specpipe.schemas.drafters.mtp import MtpShape
from specpipe.schemas.drafters.mtp_families import our_name, text_settings, their_name
from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.contract import Runtime
from specpipe.stages.drafters.mtp.model import Mtp
from specpipe.stages.target.head.target_tensors import NoTensors

_LAYER, _TARGET_LAYER = "layer.", "target_layer.layer."
_GATE_UP, _DOWN = "experts.gate_up_proj", "experts.down_proj"
_STAYS_WIDE = "e_score_correction_bias"
"""Is added to scores that lie near to each other."""


def sizes(shape: MtpShape) -> dict[str, tuple[int, ...]]:
    """Size of each parameter of the model, by its name."""
    with torch.device("meta"):
        model = Mtp(shape, NoTensors(shape.vocab_size, shape.width), Runtime())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def expected_tensors(shape: MtpShape) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (size, kind) of every tensor of an artifact."""
    with torch.device("meta"):
        blank = {name: torch.empty(size) for name, size in sizes(shape).items()}
        return {
            name: (tuple(tensor.shape), "float") for name, tensor in _theirs(shape, blank).items()
        }


def artifact_tensors(shape: MtpShape, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounded to bfloat16, but for what chooses among experts."""
    return {
        name: (tensor if name.endswith(_STAYS_WIDE) else tensor.to(torch.bfloat16)).contiguous()
        for name, tensor in _theirs(shape, model).items()
    }


def model_weights(shape: MtpShape, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The model's parameters in float32, from tensors under the checkpoint's names (a leading
    `model.` may be missing).

    Raises ConfigError for one that is no float, and where the tensors are not the layer's.
    """
    own: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        ours = _our_name(shape, name)
        if ours is None:
            raise ConfigError(f"{where}: nothing is known of {name}")
        if tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise ConfigError(
                f"{where}: {name} is {tensor.dtype}: quantised weights without their scales; write"
                " them down as float first"
            )
        before, _, number = ours.partition("experts.")
        index, _, rest = number.partition(".")
        if index.isdigit():
            experts.setdefault(f"{before}{rest}", {})[int(index)] = tensor.float()
        else:
            own[ours] = tensor.float()
    for mlp in {_mlp(name) for name in experts}:
        own |= _stacked(mlp, experts, where)
    own = {
        f"{_TARGET_LAYER}{name.removeprefix(_LAYER)}" if name.startswith(_LAYER) else name: tensor
        for name, tensor in own.items()
    }
    return own


def _our_name(shape: MtpShape, name: str) -> str | None:
    for candidate in (name, f"model.{name}"):
        if ours := our_name(shape.of, candidate, shape.num_target_layers):
            return ours
    return None


def _mlp(name: str) -> str:
    """`layer.mlp.` of the name of an expert's tensor without its number."""
    return name[: name.rindex("mlp.") + len("mlp.")]


def _stacked(
    mlp: str, experts: Mapping[str, Mapping[int, Tensor]], where: str
) -> dict[str, Tensor]:
    """The experts of a mixture as transformers has them."""
    gate, up, down = (
        experts.get(f"{mlp}{part}_proj.weight", {}) for part in ("gate", "up", "down")
    )
    numbers = range(len(gate))
    if not (sorted(gate) == sorted(up) == sorted(down) == list(numbers)):
        raise ConfigError(f"{where}: some experts of {mlp} lack a tensor")
    try:
        return {
            f"{mlp}{_GATE_UP}": torch.stack([torch.cat([gate[i], up[i]]) for i in numbers]),
            f"{mlp}{_DOWN}": torch.stack([down[i] for i in numbers]),
        }
    except RuntimeError as error:
        raise ConfigError(f"{where}: experts of {mlp} differ in size: {error}") from None


def _theirs(shape: MtpShape, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the artifact's names."""
    split: dict[str, Tensor] = {}
    for name, tensor in model.items():
        ours = name.replace(_TARGET_LAYER, _LAYER, 1) if name.startswith(_TARGET_LAYER) else name
        if ours.endswith(_GATE_UP):
            before = ours.removesuffix("gate_up_proj")
            for i, both in enumerate(tensor):
                gate, up = both.chunk(2)
                split[f"{before}{i}.gate_proj.weight"] = gate
                split[f"{before}{i}.up_proj.weight"] = up
        elif ours.endswith(_DOWN):
            before = ours.removesuffix("down_proj")
            for i, down in enumerate(tensor):
                split[f"{before}{i}.down_proj.weight"] = down
        else:
            split[ours] = tensor
    return {
        their_name(shape.of, name, shape.num_target_layers).removeprefix("model."): tensor
        for name, tensor in split.items()
    }


def activations(shape: MtpShape, num_tokens: int, num_heads: int) -> int:
    """Numbers that autograd keeps of a pass."""
    text = text_settings(shape.target_config)
    H = shape.width
    q_proj = sizes(shape).get(f"{_TARGET_LAYER}self_attn.q_proj.weight", (2 * H, H))[0]
    experts = text.get("num_experts_per_tok") or 0
    wide = text.get("intermediate_size") or H
    inner = wide if not experts else (experts + 1) * (text.get("moe_intermediate_size") or wide)
    return num_tokens * num_heads * (9 * H + 3 * int(q_proj) + 3 * int(inner))
