"""Captured states are transformers' own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.records.sample import Ids
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.target.hf.backend import HfBackend

LAYERS = (1, 2, 4, 5)


@dataclass(frozen=True)
class Tokens:
    input_ids: Ids


def batch(*lengths: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [Tokens(rng.integers(0, 97, length).astype(np.int32)) for length in lengths]


def backend(target: Path, layers: Sequence[int] = LAYERS, device: str = "cpu") -> HfBackend:
    config = DumpConfig(target=str(target), data=("-",), out="-", device=device)
    return HfBackend(config, layers)


def own_output(captured: HfBackend, samples: list[Tokens]) -> CausalLMOutputWithPast:
    width = max(len(sample.input_ids) for sample in samples)
    ids_BT, mask_BT = (torch.zeros(len(samples), width, dtype=torch.int64) for _ in range(2))
    for i, sample in enumerate(samples):
        ids_BT[i, : len(sample.input_ids)] = torch.from_numpy(sample.input_ids)
        mask_BT[i, : len(sample.input_ids)] = 1
    with torch.no_grad():
        output: CausalLMOutputWithPast = captured.model(
            input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True, use_cache=False
        )
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_equal_output_hidden_states(
    target: Callable[..., Path], architecture: str, dtype: torch.dtype
) -> None:
    captured = backend(target(architecture, dtype))
    samples = batch(20, 9, 13)
    output = own_output(captured, samples)
    assert output.hidden_states is not None
    for i, states in enumerate(captured.capture(samples)):
        aux_TLH, final_TH = states.aux_TLH, states.final_TH
        length = len(samples[i].input_ids)
        assert aux_TLH.dtype == final_TH.dtype == torch.bfloat16
        assert aux_TLH.shape == (length, len(LAYERS), 32)
        for at, layer in enumerate(LAYERS[:-1]):
            expected_TH = output.hidden_states[layer][i, :length]
            assert torch.equal(aux_TLH[:, at], expected_TH.bfloat16())
        # Layer id n is the final state, and it is not normed: transformers' last one is.
        assert torch.equal(aux_TLH[:, -1], final_TH)
        normed_TH = output.hidden_states[-1][i, :length]
        assert not torch.allclose(final_TH.float(), normed_TH.float(), atol=0.1)
        renormed_TH = captured.decoder.norm(final_TH.to(dtype))
        if dtype == torch.bfloat16:
            assert torch.equal(renormed_TH, normed_TH)
        else:  # the captured state is rounded to 8 bits of mantissa
            assert torch.allclose(renormed_TH, normed_TH, atol=2e-2)


def test_padding_does_not_reach_the_sample(target: Callable[..., Path], architecture: str) -> None:
    captured = backend(target(architecture))
    long, short = batch(30, 8)
    alone = captured.capture_batch([short])[0]
    padded = captured.capture_batch([long, short])[1]
    for a, b in (alone.aux_TLH, padded.aux_TLH), (alone.final_TH, padded.final_TH):
        assert torch.allclose(a.float(), b.float(), atol=2e-2, rtol=2e-2)


def test_soft_capped_attention_is_not_dropped(target: Callable[..., Path]) -> None:
    """torch's SDPA cannot cap scores (transformers drops the cap until 5.20, and refuses SDPA from
    5.21 on); the states must be those of capped attention."""
    captured = backend(target("gemma2"))
    samples = batch(16)
    capped = captured.capture_batch(samples)[0].final_TH.float()
    for layer in captured.model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    uncapped = captured.capture_batch(samples)[0].final_TH.float()
    assert (capped - uncapped).abs().max() > 0.05


def test_fp32_states_round_to_nearest_even(target: Callable[..., Path]) -> None:
    captured = backend(target("llama"), (2,))
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8]).repeat(16)

    def replace(*_: object) -> tuple[Tensor]:
        return (halfway.expand(1, 4, 32),)

    captured.model.model.layers[2].register_forward_pre_hook(replace, prepend=True)
    states = captured.capture_batch(batch(4))[0]
    assert states.aux_TLH[0, 0, :2].tolist() == [1.0, 1 + 2**-6]


def test_the_lm_head_does_not_run(target: Callable[..., Path]) -> None:
    captured = backend(target("llama"))
    calls: list[object] = []
    captured.model.lm_head.register_forward_hook(lambda *_: calls.append(0))
    captured.capture_batch(batch(5))
    assert calls == []


def test_a_checkpoint_that_lacks_weights_is_refused(
    target: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers would fill in random numbers."""
    from safetensors.torch import load_file, save_file

    source = target("llama")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(IntegrityError, match=r"layers\.3\.mlp\.up_proj"):
        backend(tmp_path)


def test_an_absent_gpu_is_a_clear_error(target: Callable[..., Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="no GPU"):
        backend(target("llama"), device="cuda")


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu(target: Callable[..., Path]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    samples = batch(20, 9)
    here = backend(target("llama")).capture(samples)
    there = backend(target("llama"), device="cuda").capture(samples)
    for a, b in zip(here, there, strict=True):
        for x, y in (a.aux_TLH, b.aux_TLH), (a.final_TH, b.final_TH):
            assert torch.allclose(x.float(), y.cpu().float(), atol=3e-2, rtol=3e-2)
