"""The optimiser of a drafter: AdamW, or Muon for its hidden matrices and AdamW for the rest.

Muon (Jordan et al.; arXiv 2502.16982) is for matrices between dense activations: fc and the
projections of the layers. The lm_head, one row per token, and the norms stay with AdamW, as is the
practice everywhere. Muon's updates are scaled to the size of AdamW's (0.2 sqrt(max(rows, columns)))
so that one learning rate suits both.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from specpipe.schemas.settings.train import ResolvedTrainConfig

IsMatrix = Callable[[str, nn.Parameter], bool]
"""Whether a parameter, by its name, is a matrix that Muon is for."""


class Optimizer:
    """Updates named parameters; its state is known by their names."""

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: ResolvedTrainConfig,
        is_matrix: IsMatrix,
    ) -> None:
        self.factor = 1.0
        """Share of its peak that every learning rate is at."""
        named = [pair for pair in named_parameters if pair[1].requires_grad]
        muons = [pair for pair in named if config.optimizer == "muon" and is_matrix(*pair)]
        names = {name for name, _ in muons}
        others = [pair for pair in named if pair[0] not in names]
        self._parts: list[tuple[torch.optim.Optimizer, float, list[str]]] = []
        if others:
            adamw = torch.optim.AdamW(
                [parameter for _, parameter in others],
                lr=config.learning_rate,
                betas=config.adam_betas,
                weight_decay=config.weight_decay,
                fused=True,
            )
            self._parts.append((adamw, config.learning_rate, [name for name, _ in others]))
        if muons:
            rate = config.muon_learning_rate or config.learning_rate
            muon = torch.optim.Muon(
                [parameter for _, parameter in muons],
                lr=rate,
                momentum=config.muon_momentum,
                weight_decay=config.muon_weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._parts.append((muon, rate, [name for name, _ in muons]))

    def set_rates(self, factor: float) -> None:
        """Let every learning rate be `factor` of its peak."""
        self.factor = factor
        for part, peak, _ in self._parts:
            for group in part.param_groups:
                group["lr"] = peak * factor

    def zero_grad(self) -> None:
        for part, _, _ in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part, _, _ in self._parts:
            part.step()

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state by `parameter name/slot`, on its device; none before a step."""
        found: dict[str, Tensor] = {}
        for part, _, names in self._parts:
            slots_of: dict[int, dict[str, Tensor]] = part.state_dict()["state"]
            for index, slots in slots_of.items():
                found |= {f"{names[index]}/{slot}": value for slot, value in slots.items()}
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; KeyError where a name is not a parameter's."""
        remaining = dict(tensors)
        for part, _, names in self._parts:
            state: dict[int, dict[str, Any]] = {}
            for key in list(remaining):
                name, slot = key.rsplit("/", 1)
                if name in names:
                    state.setdefault(names.index(name), {})[slot] = remaining.pop(key)
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": state, "param_groups": groups})
        if remaining:
            raise KeyError(f"{min(remaining)} belongs to no parameter of this optimiser")
