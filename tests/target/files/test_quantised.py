"""A quantised target: what is captured does not depend on what ran before."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.schemas.errors import ConfigError
from specpipe.stages.target.files.identity import load_config
from specpipe.stages.target.files.location import TargetSource
from specpipe.stages.target.files.quantised import missing_package
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.validate.serve.capture import TargetCapture
from tests.target.hf.test_hf_capture import backend, batch

INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**INT8, "strategy": "token", "dynamic": True},
        }
    },
}


def quantised(target: Path, folder: Path) -> Path:
    """The target with int8 weights and a scale for each row, as llm-compressor writes it."""
    folder.mkdir()
    tensors = {}
    for name, weight in load_file(target / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = weight.float().abs().amax(1, keepdim=True) / 127
            tensors[name] = (weight.float() / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale.to(weight.dtype)
        else:
            tensors[name] = weight
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": W8A8}))
    return folder


def test_a_capture_comes_first(target: Callable[..., Path], tmp_path: Path) -> None:
    """Level serve captures at once; a dump's proof runs the whole model before."""
    pytest.importorskip("compressed_tensors")
    folder = quantised(target("llama", torch.bfloat16), tmp_path / "quantised")
    (sample,) = batch(20)
    first = next(iter(backend(folder).capture([sample])))
    proven: HfBackend = backend(folder)
    own_S, _ = proven.own_logprobs(sample, 0)
    second = next(iter(proven.capture([sample])))
    assert torch.equal(first.aux_TLH, second.aux_TLH)
    assert torch.equal(first.final_TH, second.final_TH)
    capture = TargetCapture(TargetSource(str(folder)), (1, 2, 4), trust_remote_code=False)
    ids = sample.input_ids.tolist()
    (text,) = capture.capture([ids[:10]], [ids[10:]])
    assert text.mean_logprob == pytest.approx(float(own_S[9:].mean()), abs=2e-2)


@pytest.mark.parametrize(
    ("quantisation", "package"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes|accelerate"),
    ],
)
def test_the_missing_package_is_named(
    target: Callable[..., Path], tmp_path: Path, quantisation: dict[str, object], package: str
) -> None:
    folder = quantised(target("llama"), tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantisation
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"transformers cannot load it: .*({package})"):
        backend(folder)
    said = missing_package(load_config(folder))
    assert re.search(package, str(said))


def test_what_is_not_quantised_needs_no_package(target: Callable[..., Path]) -> None:
    assert missing_package(load_config(target("llama"))) is None
