"""What can be wrong with an artifact, or with an engine that computes with it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specpipe.schemas.records.artifact import CONFIG_FILE, MODEL_TENSORS_FILE
from specpipe.stages.drafters.eagle3.proposal import PlainDrafter

Tensors = dict[str, Tensor]
GATE, UP = (f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))


@dataclass(frozen=True)
class Damage:
    """A change of tensors, and of the settings of the drafter (top, layer)."""

    tensors: Callable[[Tensors], object] = lambda _: None
    settings: Callable[[dict[str, Any], dict[str, Any]], object] = lambda top, layer: None

    def to_folder(self, folder: Path) -> None:
        """Change the files, in the format `speculators`."""
        tensors = load_file(folder / MODEL_TENSORS_FILE)
        self.tensors(tensors)
        save_file(tensors, folder / MODEL_TENSORS_FILE)
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        self.settings(config, config["transformer_layer_config"])
        (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")

    def to_drafter(self, drafter: PlainDrafter) -> None:
        """Change a drafter that is loaded: what an engine would compute."""
        size = len(drafter.target_ids_D)
        tensors = drafter.tensors | {"d2t": drafter.target_ids_D - torch.arange(size)}
        tensors["t2d"] = torch.isin(torch.arange(len(drafter.embedding_VH)), drafter.target_ids_D)
        self.tensors(tensors)
        drafter.target_ids_D = tensors.pop("d2t") + torch.arange(size)
        tensors.pop("t2d")
        drafter.tensors = tensors
        # Of the layers that the texts hold, an engine would take others: see `reorder`.
        self.settings(drafter.config, drafter.layer)


def _swap(tensors: Tensors) -> None:
    tensors[GATE], tensors[UP] = tensors[UP].clone(), tensors[GATE].clone()


def _next_token(tensors: Tensors) -> None:
    """Every token is its neighbour, as far as there is room."""
    size = len(tensors["t2d"])
    ids_D = tensors["d2t"] + torch.arange(len(tensors["d2t"]))
    shifted_D = torch.where(ids_D + 1 < size, ids_D + 1, ids_D)
    if len(shifted_D.unique()) < len(ids_D):
        free = torch.ones(size, dtype=torch.bool)
        free[shifted_D] = False
        shifted_D = torch.cat([free.nonzero()[0], shifted_D.unique()]).unique()
    tensors["d2t"] = shifted_D - torch.arange(len(ids_D))
    tensors["t2d"] = torch.isin(torch.arange(size), shifted_D)


def _scale(name: str, factor: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name] * factor})


def _one_number(tensors: Tensors) -> None:
    weight = tensors[UP].clone()
    weight[3, 5] *= 1.02
    tensors[UP] = weight


def _foreign_norm(tensors: Tensors) -> None:
    weight = tensors["norm.weight"]
    tensors["norm.weight"] = torch.linspace(0.2, 3, len(weight)).to(weight.dtype)


def _rope(_: dict[str, Any], layer: dict[str, Any]) -> None:
    layer["rope_parameters"] = {**layer["rope_parameters"], "rope_theta": 10.0}


def _reorder(tensors: Tensors) -> None:
    """The columns of fc for other layers: their order is another."""
    weight = tensors["fc.weight"]
    tensors["fc.weight"] = torch.cat(weight.chunk(3, dim=1)[::-1], dim=1).contiguous()


DAMAGES: dict[str, Damage] = {
    "none": Damage(),
    "rope of base 10": Damage(settings=_rope),
    "norm_before_residual": Damage(
        settings=lambda top, _: top.update(norm_before_residual=not top["norm_before_residual"])
    ),
    "norm_output": Damage(settings=lambda top, _: top.update(norm_output=not top["norm_output"])),
    "two tensors swapped (gate, up)": Damage(_swap),
    "auxiliary layers in another order": Damage(_reorder),
    "d2t off by one": Damage(_next_token),
    "foreign final norm": Damage(_foreign_norm),
    "lm_head times 1.25 (a temperature of 0.8)": Damage(_scale("lm_head.weight", 1.25)),
    "fc times 1.5": Damage(_scale("fc.weight", 1.5)),
    "one number of one tensor": Damage(_one_number),
}
