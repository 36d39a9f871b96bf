"""The head stored in a dump gives the target's own logits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.state_loss import StateLoss
from specpipe.stages.drafters.parts.final_norm import FinalNorm
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.head.verifier_head import (
    VerifierHead,
    final_scale,
    load_embedding,
    load_lm_head,
    logit_scale,
    save_head,
)
from specpipe.stages.target.hf.backend import HfBackend
from tests.acceptance.loss.loss_rows import rows_batch

CPU = torch.device("cpu")


def stored_head(target: Path, tmp_path: Path) -> tuple[HfBackend, Folder]:
    backend = HfBackend(DumpConfig(target=str(target), data=("-",), out="-", device="cpu"), (2,))
    folder = Folder.open(str(tmp_path / "target"))
    folder.create("config.json", (target / "config.json").read_bytes())
    save_head(backend.model, folder)
    return backend, folder


def final_and_logits(backend: HfBackend) -> tuple[Tensor, Tensor]:
    """Final states in the target's own dtype, and the target's logits."""
    caught: list[Tensor] = []
    hook = backend.decoder.norm.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = backend.model(input_ids=ids, use_cache=False).logits[0]
    hook.remove()
    return caught[0][0], logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_the_models(
    target: Callable[..., Path], architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    backend, folder = stored_head(target(architecture, dtype), tmp_path)
    final_SH, expected_SV = final_and_logits(backend)
    logits_SV = VerifierHead.load(folder.read, CPU).logits(final_SH)
    assert logits_SV.dtype == torch.float32
    if dtype == torch.float32:
        assert torch.allclose(logits_SV, expected_SV, atol=1e-6)
    else:  # the model's logits are rounded to 8 bits of mantissa, ours are not
        assert torch.allclose(logits_SV, expected_SV.float(), atol=1e-2, rtol=2**-7)
        assert not torch.equal(logits_SV, logits_SV.bfloat16().float())


def test_chosen_rows_are_those_rows(
    target: Callable[..., Path], architecture: str, tmp_path: Path
) -> None:
    backend, folder = stored_head(target(architecture), tmp_path)
    final_SH, _ = final_and_logits(backend)
    rows_D = torch.tensor([0, 5, 17, 96])
    head = VerifierHead.load(folder.read, CPU, rows_D)
    all_SV = VerifierHead.load(folder.read, CPU).logits(final_SH)
    assert head.lm_head_VH.shape == (4, 32)
    assert torch.allclose(head.logits(final_SH), all_SV[:, rows_D], atol=1e-6)


def test_rows_on_a_unit_state_times_the_final_scale_are_the_logits(
    target: Callable[..., Path], architecture: str, tmp_path: Path
) -> None:
    _, folder = stored_head(target(architecture), tmp_path)
    state_SH = torch.randn(7, 32)
    state_SH = state_SH - state_SH.mean(-1, keepdim=True)
    state_SH = state_SH / state_SH.square().mean(-1, keepdim=True).sqrt()
    logits_SV = (state_SH * final_scale(folder.read)) @ load_lm_head(folder.read).T
    if cap := json.loads(folder.read("head.json"))["logit_softcap"]:
        logits_SV = cap * torch.tanh(logits_SV / cap)
    head = VerifierHead.load(folder.read, CPU)
    # A norm's bias, which no drafter has, is the same for both signs.
    expected_SV = (head.logits(state_SH) - head.logits(-state_SH)) / 2
    assert torch.allclose(logits_SV, expected_SV, atol=1e-4)


def test_where_the_loss_of_states_is_0_the_lm_head_makes_the_targets_logits(
    target: Callable[..., Path], architecture: str, tmp_path: Path
) -> None:
    backend, folder = stored_head(target(architecture), tmp_path)
    final_SH, expected_SV = final_and_logits(backend)
    head, scale = VerifierHead.load(folder.read, CPU), logit_scale(folder.read)
    outputs_SH = FinalNorm(head.norm)(final_SH) * scale
    logits_SV = outputs_SH @ load_lm_head(folder.read).T
    if cap := json.loads(folder.read("head.json"))["logit_softcap"]:
        logits_SV = cap * torch.tanh(logits_SV / cap)
    assert torch.allclose(logits_SV, expected_SV, atol=1e-5)
    at_S = torch.arange(len(final_SH))
    batch = replace(rows_batch(expected_SV, at_S.tolist(), [at_S.tolist()]), final_SH=final_SH)
    of = Denominators.of(batch, torch.arange(expected_SV.shape[1]))
    loss = StateLoss(10.0, FinalNorm(head.norm), scale)
    assert loss(outputs_SH[None], batch, torch.ones(1), of) < 1e-10
    assert loss(2 * outputs_SH[None], batch, torch.ones(1), of) == pytest.approx(10, rel=1e-5)


def test_embedding_and_lm_head_are_as_stored(
    target: Callable[..., Path], architecture: str, tmp_path: Path
) -> None:
    backend, folder = stored_head(target(architecture, torch.bfloat16), tmp_path)
    embedding_VH, lm_head_VH = load_embedding(folder.read), load_lm_head(folder.read)
    assert embedding_VH.dtype == torch.bfloat16
    assert torch.equal(embedding_VH, backend.model.get_input_embeddings().weight)  # type: ignore[arg-type]
    assert torch.equal(lm_head_VH, backend.model.get_output_embeddings().weight)


def test_tied_embeddings_are_stored_once(target: Callable[..., Path], tmp_path: Path) -> None:
    tied = stored_head(target("qwen3"), tmp_path / "tied")[1]
    untied = stored_head(target("llama"), tmp_path / "untied")[1]
    assert json.loads(tied.read("head.json"))["lm_head"] == "embed_tokens.weight"
    assert (untied.size("head.safetensors") or 0) > 1.8 * (tied.size("head.safetensors") or 0)


def test_head_json_says_what_the_head_does(target: Callable[..., Path], tmp_path: Path) -> None:
    gemma = json.loads(stored_head(target("gemma2"), tmp_path / "g")[1].read("head.json"))
    assert (gemma["norm"], gemma["logit_softcap"]) == ("Gemma2RMSNorm", 3.0)
    granite = json.loads(stored_head(target("granite"), tmp_path / "r")[1].read("head.json"))
    assert granite["logit_scale"] == 0.25


def test_a_dump_cannot_bring_code(target: Callable[..., Path], tmp_path: Path) -> None:
    _, folder = stored_head(target("llama"), tmp_path)
    config = json.loads(folder.read("config.json"))
    (tmp_path / "target" / "evil.py").write_text("raise RuntimeError('code of the dump was run')")
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    folder.write("config.json", json.dumps(config).encode())
    VerifierHead.load(folder.read, CPU)
    config["model_type"] = "something_of_its_own"
    folder.write("config.json", json.dumps(config).encode())
    with pytest.raises(ConfigError, match="something_of_its_own"):
        VerifierHead.load(folder.read, CPU)


def test_damaged_files_are_integrity_errors(target: Callable[..., Path], tmp_path: Path) -> None:
    _, folder = stored_head(target("llama"), tmp_path)
    weights, record = folder.read("head.safetensors"), folder.read("head.json")
    for key, data in [
        ("head.safetensors", weights[:100]),
        ("head.safetensors", weights.replace(b"lm_head.weight", b"lm_hexx.weight")),
        ("head.safetensors", weights.replace(b"norm.weight", b"nork.weight")),
        ("head.json", b"{"),
        ("head.json", record.replace(b"lm_head_path", b"lm_head_pith")),
    ]:
        folder.write(key, data)
        with pytest.raises(IntegrityError):
            VerifierHead.load(folder.read, CPU)
        folder.write("head.safetensors", weights)
        folder.write("head.json", record)
    VerifierHead.load(folder.read, CPU)


@pytest.mark.parametrize("path", ["no.such.module", "", "model.norm", "model"])
def test_an_output_layer_that_is_none(
    target: Callable[..., Path], tmp_path: Path, path: str
) -> None:
    _, folder = stored_head(target("llama"), tmp_path)
    record = json.loads(folder.read("head.json")) | {"lm_head_path": path}
    folder.write("head.json", json.dumps(record).encode() + b"\n")
    with pytest.raises(IntegrityError, match=f"output layer of LlamaForCausalLM is '{path}'"):
        VerifierHead.load(folder.read, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip"}, "makes no causal language model"),
        ({"hidden_size": "many"}, "makes no causal language model"),
        ({"num_attention_heads": 0}, "makes no causal language model"),
        ({"hidden_size": 64}, "does not fit"),
        (
            {"vocab_size": 50},
            r"lm_head\.weight is \[97, 32\], but by config\.json it is \[50, 32\]",
        ),
    ],
)
def test_a_config_that_makes_no_such_head(
    target: Callable[..., Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    _, folder = stored_head(target("llama"), tmp_path)
    config = json.loads(folder.read("config.json")) | changes
    folder.write("config.json", json.dumps(config).encode())
    with pytest.raises(IntegrityError, match=message):
        VerifierHead.load(folder.read, CPU)
    folder.write("config.json", b"[]")
    with pytest.raises(IntegrityError, match="not an object"):
        VerifierHead.load(folder.read, CPU)


def _spoil(tensor: Tensor) -> Tensor:
    tensor[3] = torch.nan
    return tensor


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("lm_head.weight", _spoil, "lm_head.weight holds NaN or infinity"),
        ("norm.weight", lambda t: t * torch.inf, "norm.weight holds NaN or infinity"),
        ("lm_head.weight", lambda t: t.long(), "lm_head.weight is torch.int64, not a float"),
        ("lm_head.weight", lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn, not a float"),
        ("embed_tokens.weight", lambda t: t[:, :16].clone(), r"embed_tokens.weight is \[97, 16\]"),
    ],
)
def test_weights_that_no_target_has(
    target: Callable[..., Path],
    tmp_path: Path,
    name: str,
    change: Callable[[Tensor], Tensor],
    words: str,
) -> None:
    _, folder = stored_head(target("llama"), tmp_path)
    tensors = load(folder.read("head.safetensors"))
    tensors[name] = change(tensors[name])
    folder.write("head.safetensors", save(tensors))
    with pytest.raises(IntegrityError, match=words):
        VerifierHead.load(folder.read, CPU)
