"""An MTP drafter written down plainly, to prove exported files with: dense attention, no tricks.

It reads the artifact's two files and the target's embedding, final norm and lm_head, and shares no
code with the drafter that is trained (model.py).

At start i the target has consumed x[0..i] and emitted x[i+1]. Step k takes token x[i+k] and the
output of step k-1 (step 1: the target's last state at position i) at rope position i+k-1, attends
to all step-1 keys of positions <= i and to its own start's keys of steps 2..k, and predicts
x[i+k+1].

Legend: T tokens, P positions with a next token, N starts, K steps, L layers (1), H hidden size,
V vocabulary.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.artifact import CONFIG_FILE, MODEL_TENSORS_FILE
from specpipe.stages.drafters.mtp.plain_layer import Keys, PlainLayer, normed
from specpipe.stages.target.files.model_config import build_config, parse_config
from specpipe.stages.target.head.target_tensors import TargetTensors
from specpipe.stages.untrusted.files import read_file
from specpipe.stages.untrusted.tensors import load_tensors


@dataclass(frozen=True, slots=True)
class _Around:
    """Names of what surrounds the layer, and in which way it does."""

    layer: str
    embedding: str
    hidden: str
    proj: str
    norm: str | None
    hidden_first: bool = False
    keeps_first: bool = False
    takes_normed: bool = True
    feeds_normed: bool = True


def _around(kind: str, num_layers: int) -> _Around:
    if kind == "mimo":
        at = "model.mtp_layers.0."
        norms = f"{at}token_layernorm", f"{at}hidden_layernorm", f"{at}input_proj"
        return _Around(at, *norms, f"{at}final_layernorm", hidden_first=True, takes_normed=False)
    if kind == "ernie4_5_moe":
        norms = "model.mtp_emb_norm.0", "model.mtp_hidden_norm.0", "model.mtp_linear_proj.0"
        return _Around("model.mtp_block.0.", *norms, None)
    if kind.startswith("qwen3"):
        norms = "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.fc"
        return _Around("mtp.layers.0.", *norms, "mtp.norm", keeps_first=True)
    at = f"model.layers.{num_layers}."
    return _Around(
        at,
        f"{at}enorm",
        f"{at}hnorm",
        f"{at}eh_proj",
        f"{at}shared_head.norm",
        feeds_normed=kind == "deepseek_v3",
    )


@dataclass(frozen=True, slots=True)
class PlainMtp:
    """float32 unless asked for otherwise; `settings` are the target's."""

    kind: str
    settings: Any
    tensors: dict[str, Tensor]
    embedding_VH: Tensor
    lm_head_VH: Tensor
    final_norm_H: Tensor

    @classmethod
    def load(cls, folder: Path, target: TargetTensors) -> "PlainMtp":
        where = str(folder / CONFIG_FILE)
        raw = parse_config(read_file(folder / CONFIG_FILE), where, IntegrityError)
        is_mimo = (raw.get("architectures") or [None])[0] == "MiMoForCausalLM"
        kind = "mimo" if is_mimo else str(raw["model_type"]).removesuffix("_text")
        path = folder / MODEL_TENSORS_FILE
        return cls(
            kind,
            build_config(raw, where, IntegrityError).get_text_config(decoder=True),
            {name: tensor.float() for name, tensor in load_tensors(path, str(path)).items()},
            target.embedding_VH.float(),
            target.lm_head_VH.float(),
            target.final_norm_H.float(),
        )

    def double(self) -> "PlainMtp":
        """The same in float64."""
        return replace(
            self,
            tensors={name: tensor.double() for name, tensor in self.tensors.items()},
            embedding_VH=self.embedding_VH.double(),
            lm_head_VH=self.lm_head_VH.double(),
            final_norm_H=self.final_norm_H.double(),
        )

    @property
    def aux_layers(self) -> tuple[int, ...]:
        return (self.settings.num_hidden_layers,)

    @property
    def vocab_size(self) -> int:
        return len(self.embedding_VH)

    @property
    def target_ids_D(self) -> Tensor:
        return torch.arange(self.vocab_size)

    def logits(self, hidden_NH: Tensor, step: int = 1) -> Tensor:
        """[N, V]; every step has the target's head."""
        return hidden_NH @ self.lm_head_VH.T

    @torch.no_grad()
    def hidden(
        self, input_ids_T: Tensor, aux_TLH: Tensor, begin: int, end: int, num_steps: int
    ) -> Tensor:
        """Outputs [K, N, H] of every step at the starts [begin, end), end < T.

        A step whose token x[i+k] lies outside the sample is fed token 0; its output means nothing.
        """
        around = _around(self.kind, self.settings.num_hidden_layers)
        tokens_T = torch.cat([input_ids_T.long(), torch.zeros(num_steps, dtype=torch.int64)])
        state_PH = aux_TLH[:end, 0].to(self.embedding_VH.dtype)
        if around.takes_normed:
            state_PH = normed(state_PH, self.final_norm_H, self.settings.rms_norm_eps)
        keys: Keys = []
        positions_P = torch.arange(end)
        output, taken = self._step(
            around, tokens_T[1 : end + 1], state_PH, positions_P, positions_P, keys
        )
        outputs, taken = [output[begin:end]], taken[begin:end]
        starts_N = torch.arange(begin, end)
        for step in range(2, num_steps + 1):
            output, taken = self._step(
                around, tokens_T[starts_N + step], taken, starts_N, starts_N + step - 1, keys
            )
            outputs.append(output)
        return torch.stack(outputs)

    def _step(
        self,
        around: _Around,
        tokens_N: Tensor,
        state_NH: Tensor,
        starts_N: Tensor,
        positions_N: Tensor,
        keys: Keys,
    ) -> tuple[Tensor, Tensor]:
        """What the lm_head takes, and what the next step does."""
        embedded_NH = self.embedding_VH[tokens_N]
        if not around.keeps_first:
            embedded_NH = torch.where(positions_N[:, None] == 0, 0, embedded_NH)
        halves = [self._norm(around.embedding, embedded_NH), self._norm(around.hidden, state_NH)]
        if around.hidden_first:
            halves.reverse()
        inputs_NH = torch.cat(halves, dim=-1) @ self.tensors[f"{around.proj}.weight"].T
        own = {
            name.removeprefix(around.layer): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(around.layer)
        }
        layer = PlainLayer(self.kind, self.settings, own)
        hidden_NH = layer.forward(inputs_NH, positions_N, starts_N, keys)
        output_NH = hidden_NH if around.norm is None else self._norm(around.norm, hidden_NH)
        return output_NH, output_NH if around.feeds_normed else hidden_NH

    def _norm(self, name: str, inputs: Tensor) -> Tensor:
        adds_one = self.kind.startswith("qwen3")
        weight_H = self.tensors[f"{name}.weight"]
        return normed(inputs, weight_H, self.settings.rms_norm_eps, adds_one)
