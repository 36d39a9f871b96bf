"""A config.json of a stranger: unusual numbers are read; kernels and endless layers are not."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconH1Config,
    GPTJConfig,
    GPTJForCausalLM,
    GptOssConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MptConfig,
    PreTrainedConfig,
)

from specpipe.schemas.errors import ConfigError, IntegrityError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.target.files.identity import load_config, target_identity
from specpipe.stages.target.files.location import TargetSource
from specpipe.stages.target.files.model_config import build_config, parse_config
from specpipe.stages.target.head.head_model import head_numbers
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.validate.serve.capture import TargetCapture

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}


def save(config: PreTrainedConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def backend(target: Path) -> HfBackend:
    return HfBackend(DumpConfig(target=str(target), data=("-",), out="-", device="cpu"), (1, 2))


def changed(target: Path, folder: Path, **changes: object) -> Path:
    """The target with other entries in its config.json."""
    folder.mkdir()
    config = json.loads((target / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "model.safetensors").symlink_to(target / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "implementation"),
    [
        (GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4, num_experts_per_tok=2), "eager"),
        # Its class has SDPA since transformers 5.24.
        (
            GPTJConfig(vocab_size=97, n_embd=32, n_layer=3, n_head=4, rotary_dim=4),
            "sdpa" if GPTJForCausalLM._supports_sdpa else "eager",
        ),
        (BloomConfig(vocab_size=97, hidden_size=32, n_layer=3, n_head=4), "eager"),
        (MptConfig(vocab_size=97, d_model=32, n_layers=3, n_heads=4), "eager"),
        (LlamaConfig(**SHAPE), "sdpa"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_attention_that_the_class_has(
    config: PreTrainedConfig, implementation: str, tmp_path: Path
) -> None:
    model = backend(save(config, tmp_path)).model
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        GraniteMoeHybridConfig(
            **SHAPE,
            **MAMBA,
            mamba_expand=2,
            mamba_n_groups=1,
            num_local_experts=0,
            layer_types=["mamba", "attention", "mamba"],
            time_step_limit=[0.0, math.inf],
        ),
        FalconH1Config(
            **SHAPE, **MAMBA | {"mamba_d_ssm": 64}, mamba_n_groups=1, lm_head_multiplier=0.5
        ),
    ],
    ids=lambda config: str(config.model_type),
)
def test_numbers_that_are_not_finite(
    config: PreTrainedConfig, is_plain: bool, tmp_path: Path
) -> None:
    target = save(config, tmp_path)
    written = json.loads((target / "config.json").read_text())
    assert {"__float__": "Infinity"} in written["time_step_limit"]
    if is_plain:  # as transformers 4 writes it
        written["time_step_limit"] = [0.0, math.inf]
        (target / "config.json").write_text(json.dumps(written))
    assert load_config(target).time_step_limit[1] == math.inf
    capture = TargetCapture(TargetSource(str(target)), (1, 2), trust_remote_code=False)
    (text,) = capture.capture([[5, 6, 7]], [[8, 9]])
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        own_TV = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].float()
    assert torch.allclose(text.output_logits_SV, own_TV[2:4], atol=2e-2)


def test_a_config_names_no_kernel(target: Callable[..., Path], tmp_path: Path) -> None:
    """transformers would fetch and run it, or refuse where it cannot."""
    names = {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
    names |= {"experts_implementation": "evil/kernel", "transformers_weights": "x.safetensors"}
    folder = changed(target("llama"), tmp_path / "target", **names, dtype="auto")
    assert head_numbers(folder) == head_numbers(target("llama"))
    raw = json.loads((folder / "config.json").read_text())
    nested = {"text_config": raw, "model_type": "llava", **names}
    for config in (load_config(folder), build_config(nested, "it", IntegrityError)):
        text = config.get_text_config(decoder=True)
        assert config._attn_implementation is text._attn_implementation is None
    assert backend(folder).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 20_000}, "num_hidden_layers is 20000, more than 1000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, more than 1000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": "many"}, "transformers cannot"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"vocab_size": None}, "transformers cannot"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": {"__float__": "Infinity"}}, "rms_norm_eps is inf"),
        ({"quantization_config": 5}, "transformers cannot"),
        ({"rope_parameters": {"rope_type": "unheard", "rope_theta": 1e4}}, "unheard"),
        ({"pad_token_id": 97}, "transformers cannot"),
        ({"num_attention_heads": 0}, "transformers cannot"),
        ({"model_type": ["llama"]}, r"does not know the target's model type \['llama'\]"),
        ({"model_type": "unheard"}, "does not know the target's model type 'unheard'"),
    ],
)
def test_configs_that_make_no_model(
    target: Callable[..., Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = changed(target("llama"), tmp_path / "target", **changes)
    with pytest.raises(ConfigError, match=message) as of_plan:
        head_numbers(folder)
    with pytest.raises(ConfigError, match=message) as of_dump:
        backend(folder)
    for error in (of_plan, of_dump):
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a": ' * 5000 + b"1" + b"}" * 5000, b"\xff{}"])
def test_a_config_that_is_no_json(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"config\.json: "):
        target_identity(str(tmp_path), with_weights=False)
    with pytest.raises(IntegrityError, match="it: "):
        parse_config(text, "it", IntegrityError)
