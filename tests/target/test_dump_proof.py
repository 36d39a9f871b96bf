"""The self-check of a dump passes on what is right and catches what is classically wrong."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from specpipe.schemas.errors import ValidationError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.backend import Captured
from specpipe.stages.target.batches import Tokens
from specpipe.stages.target.head.verifier_head import VerifierHead, save_head
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.target.proof import ProofSample, prove


def samples(num: int = 3) -> list[ProofSample]:
    rng = np.random.default_rng(1)
    made = []
    for i, length in enumerate(rng.integers(12, 30, num)):
        mask = np.ones(length, np.uint8)
        mask[:4] = 0
        ids = rng.integers(0, 97, length).astype(np.int32)
        made.append(ProofSample.cut(f"sample-{i}", ids, mask))
    return made


def backend_and_head(
    target: Path, tmp_path: Path, kind: type[HfBackend] = HfBackend
) -> tuple[HfBackend, VerifierHead]:
    config = DumpConfig(target=str(target), data=("-",), out="-", device="cpu")
    backend = kind(config, (1, 2, 4))
    folder = Folder.open(str(tmp_path / "target"))
    folder.create("config.json", (target / "config.json").read_bytes())
    save_head(backend.model, folder)
    return backend, VerifierHead.load(folder.read, backend.device)


class OneLayerEarly(HfBackend):
    """Takes the input of the last layer for its output."""

    def capture_batch(self, batch: Sequence[Tokens]) -> list[Captured]:
        last: list[Tensor] = []
        hook = self.decoder.layers[-1].register_forward_pre_hook(lambda _, a: last.append(a[0]))
        captured = super().capture_batch(batch)
        hook.remove()
        return [
            replace(states, final_TH=last[0][i, : len(states.aux_TLH)].bfloat16())
            for i, states in enumerate(captured)
        ]


class AlreadyNormed(HfBackend):
    def capture_batch(self, batch: Sequence[Tokens]) -> list[Captured]:
        with torch.no_grad():
            norm = self.decoder.norm
            return [
                replace(of, final_TH=norm(of.final_TH.to(self.model.dtype)).bfloat16())
                for of in super().capture_batch(batch)
            ]


class AuxOffByOne(HfBackend):
    """Names a layer's output by the layer, as SGLang and ModelOpt do."""

    def capture_batch(self, batch: Sequence[Tokens]) -> list[Captured]:
        caught: dict[int, Tensor] = {}
        hooks = [
            self.decoder.layers[k + 1].register_forward_pre_hook(
                lambda _, args, k=k: caught.__setitem__(k, args[0])
            )
            for k in self.layers
            if k + 1 < self.decoder.num_layers
        ]
        captured = super().capture_batch(batch)
        for hook in hooks:
            hook.remove()
        wrong = []
        for i, states in enumerate(captured):
            aux_TLH = states.aux_TLH.clone()
            for at, k in enumerate(self.layers):
                if k in caught:
                    aux_TLH[:, at] = caught[k][i, : len(aux_TLH)].bfloat16()
            wrong.append(replace(states, aux_TLH=aux_TLH))
        return wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_dump_proves_itself(
    target: Callable[..., Path], architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    prove(*backend_and_head(target(architecture, dtype), tmp_path), samples())


@pytest.mark.parametrize("wrong", [OneLayerEarly, AlreadyNormed])
def test_a_wrong_final_state_is_caught(
    target: Callable[..., Path], architecture: str, wrong: type[HfBackend], tmp_path: Path
) -> None:
    backend, head = backend_and_head(target(architecture), tmp_path, wrong)
    with pytest.raises(ValidationError, match="of another layer, or already normed"):
        prove(backend, head, samples())


def test_a_wrong_aux_layer_is_caught(target: Callable[..., Path], tmp_path: Path) -> None:
    backend, head = backend_and_head(target("llama"), tmp_path, AuxOffByOne)
    with pytest.raises(ValidationError, match="layer id 1"):
        prove(backend, head, samples())


def test_a_wrong_lm_head_is_caught(target: Callable[..., Path], tmp_path: Path) -> None:
    backend, head = backend_and_head(target("llama"), tmp_path)
    head.lm_head.weight_VH = head.lm_head.weight_VH.roll(1, 0)
    with pytest.raises(ValidationError, match="another checkpoint"):
        prove(backend, head, samples())


def test_samples_that_are_not_finite_are_left_to_the_dump(
    target: Callable[..., Path], tmp_path: Path
) -> None:
    backend, head = backend_and_head(target("llama"), tmp_path)
    embedding = backend.model.get_input_embeddings()
    poisoned, *rest = samples()
    with torch.no_grad():
        embedding.weight[int(poisoned.input_ids[0])] = float("nan")  # type: ignore[operator]
    prove(backend, head, [poisoned, *rest])
