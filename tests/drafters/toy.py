"""A drafter that no engine knows, as somebody else's package might bring it.

Its draft k is the target's head, scaled, on a linear map of the target's final state: the final
state as an input, sampled starts, a frozen head per step, and a further term of the loss.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from specpipe.schemas.drafters.base import DrafterSettings, DrafterShape
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.drafters.contract import DrafterModel, Generator, Rows, Serving
from specpipe.stages.drafters.own_artifact import OwnArtifact
from specpipe.stages.samples.batch import Batch
from specpipe.stages.target.head.target_tensors import TargetTensors

K = 2
ENTRY_POINT = "[specpipe.drafters]\ntoy = tests.drafters.toy:ARCHITECTURE\n"


class ToySettings(DrafterSettings):
    most_draft_tokens: ClassVar[int] = K
    own_recipe: ClassVar[dict[str, Any]] = {"num_heads": K}
    kind: Literal["toy"] = "toy"
    share: float = 0.5
    """Of the starts that a step trains on."""

    @classmethod
    def default_layers(cls, num_layers: int) -> tuple[int, ...]:
        return (num_layers,)


class ToyShape(DrafterShape):
    architecture: Literal["toy"] = "toy"


class Toy(DrafterModel):
    def __init__(self, shape: ToyShape, rows_DH: Tensor) -> None:
        super().__init__()
        self.shape = shape
        H = shape.target_hidden_size
        self.maps = nn.ModuleList(nn.Linear(H, H, bias=False) for _ in range(K))
        for k in range(K):
            self.register_buffer(f"head_{k}", rows_DH.float() * (1 + k), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        final_NH = batch.aux_TLH[batch.starts_N, 0].to(next(self.parameters()).dtype)
        return torch.stack([own(final_NH) for own in self.maps])

    def heads(self) -> Heads:
        return Heads.per_head([self.get_buffer(f"head_{k}") for k in range(K)])

    def extra_loss(
        self, batch: Batch, outputs_KNX: Tensor, measures_MKN: Tensor, of: Denominators
    ) -> Tensor:
        return 1e-3 * outputs_KNX[0].square().mean(-1).sum() / of.starts_K[0].float()


class ToyArchitecture(OwnArtifact[ToyShape]):
    name = "toy"
    settings = ToySettings
    shape = ToyShape
    serving = Serving(method="toy", title="Toy")
    samples_starts = True

    def make_shape(self, config: Any, target: Any, *sizes: Any) -> ToyShape:
        layers, vocab_size, draft_vocab_size = sizes
        return ToyShape(
            target_hidden_size=target.hidden_size, vocab_size=vocab_size,
            draft_vocab_size=draft_vocab_size, aux_layers=layers,
        )  # fmt: skip

    def build(
        self, shape: ToyShape, target: TargetTensors, target_ids_D: Tensor, runtime: Any
    ) -> Toy:
        return Toy(shape, target.lm_head_VH[target_ids_D])

    def initialise(self, model: DrafterModel, *_: Any) -> None:
        for own in model.parameters():
            nn.init.eye_(own)

    def choose_rows(self, config: Any, rows_KN: Rows, rng: Generator) -> Rows:
        kept_KN: Rows = rows_KN & (rng.random(rows_KN.shape[1]) < config.drafter.share)
        return kept_KN

    def activation_numbers(self, shape: ToyShape, num_tokens: int, num_heads: int) -> int:
        return num_tokens * num_heads * shape.target_hidden_size

    def proposal(self, folder: Path, target: TargetTensors) -> "ToyProposal":
        return ToyProposal(load_file(folder / "model.safetensors"), target.lm_head_VH.float())


class ToyProposal:
    def __init__(self, tensors: dict[str, Tensor], lm_head_VH: Tensor) -> None:
        self.tensors, self.lm_head_VH = tensors, lm_head_VH
        self.aux_layers, self.vocab_size = (4,), len(lm_head_VH)
        self.target_ids_D = torch.arange(len(tensors["d2t"])) + tensors["d2t"]

    def hidden(self, ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, steps: int) -> Tensor:
        final_RH = aux_TLH[begin:end, 0].to(self.lm_head_VH.dtype)
        weights = [self.tensors[f"maps.{k}.weight"].to(final_RH.dtype) for k in range(steps)]
        return torch.stack([final_RH @ weight.T for weight in weights])

    def logits(self, hidden_RX: Tensor, step: int) -> Tensor:
        return hidden_RX @ self.lm_head_VH[self.target_ids_D].T * step

    def double(self) -> "ToyProposal":
        return ToyProposal(self.tensors, self.lm_head_VH.double())


ARCHITECTURE = ToyArchitecture()
