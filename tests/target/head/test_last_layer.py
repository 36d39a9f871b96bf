"""The target's last layer in a dump: of which targets, and exactly as the checkpoint has it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.dump import LAST_LAYER_FILE
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.target.head.last_layer import (
    last_layer_bytes,
    load_last_layer,
    save_last_layer,
)

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def save_target(folder: Path, model_type: str) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def saved(source: Path, folder: Path) -> Folder:
    folder.mkdir()
    out = Folder.open(str(folder))
    save_last_layer(source, out)
    return out


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
def test_it_is_the_checkpoints(model_type: str, tmp_path: Path) -> None:
    source = save_target(tmp_path / "target", model_type)
    out = saved(source, tmp_path / "out")
    tensors = load_last_layer(out.read)
    whole = load_file(source / "model.safetensors")
    assert set(tensors) == {name for name in whole if name.startswith("model.layers.3.")}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors.items())
    num_files, num_bytes = last_layer_bytes(source, 2)
    assert num_files == 1
    assert num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert num_bytes < (out.size(LAST_LAYER_FILE) or 0) < num_bytes + 2048
    (source / "model.safetensors").unlink()
    # But for the biases or norms that a family has besides.
    num_files, by_config = last_layer_bytes(source, 2)
    assert num_files == 1
    assert by_config == pytest.approx(num_bytes, rel=0.02)


@pytest.mark.parametrize("change", ["gemma3_text", "quantised by config", "int8", "pickled"])
def test_none_of_other_targets(change: str, tmp_path: Path) -> None:
    source = save_target(tmp_path / "target", "gemma3_text" if change[0] == "g" else "llama")
    config, weights = source / "config.json", source / "model.safetensors"
    if change == "quantised by config":
        values = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "fp8"}}
        config.write_text(json.dumps(values))
    elif change == "int8":
        tensors = load_file(weights)
        name = "model.layers.3.mlp.up_proj.weight"
        save_file(tensors | {name: tensors[name].to(torch.int8)}, weights)
    elif change == "pickled":
        weights.rename(source / "pytorch_model.bin")
    assert not saved(source, tmp_path / "out").exists(LAST_LAYER_FILE)


def test_what_transformers_fills_in_may_be_left_out(tmp_path: Path) -> None:
    source = save_target(tmp_path / "target", "llama")
    config = json.loads((source / "config.json").read_text())
    del config["num_hidden_layers"], config["num_key_value_heads"]
    (source / "config.json").write_text(json.dumps(config))
    # Of the 32 layers that are left to it, the checkpoint has none.
    assert not saved(source, tmp_path / "out").exists(LAST_LAYER_FILE)
    (source / "model.safetensors").unlink()
    assert last_layer_bytes(source, 2)[0] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3])
def test_what_is_no_layers_is_refused(value: float, tmp_path: Path) -> None:
    out = saved(save_target(tmp_path / "target", "llama"), tmp_path / "out")
    tensors = load_last_layer(out.read)
    name = "model.layers.3.mlp.up_proj.weight"
    dtype = torch.int8 if value == 3 else torch.bfloat16
    tensors[name] = torch.full_like(tensors[name], value, dtype=dtype)
    save_file(tensors, tmp_path / "out" / LAST_LAYER_FILE)
    with pytest.raises(IntegrityError, match=f"{LAST_LAYER_FILE}.*finite"):
        load_last_layer(out.read)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    out = saved(save_target(tmp_path / "target", "llama"), tmp_path / "out")
    (tmp_path / "out" / LAST_LAYER_FILE).write_bytes(out.read(LAST_LAYER_FILE)[:100])
    with pytest.raises(IntegrityError, match=LAST_LAYER_FILE):
        load_last_layer(out.read)
