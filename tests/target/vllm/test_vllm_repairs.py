"""Faults of vLLM on a CPU: found where they are and repaired; a test fails once vLLM mends one."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from specpipe.stages.target.vllm import plugin
from specpipe.stages.target.vllm.repairs.expansion import expand, expands_wrongly
from specpipe.stages.target.vllm.repairs.layered_norm import layer_by_layer, norms_wrongly
from specpipe.stages.target.vllm.repairs.register import ENVIRONMENT
from specpipe.stages.target.vllm.repairs.text_positions import for_both, forgets_the_drafter
from specpipe.stages.target.vllm.repairs.torchvision import with_stand_in


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_expand(dtype: torch.dtype) -> None:
    values = torch.tensor([7, 0, 3], dtype=dtype)
    output = torch.full((6,), -1, dtype=dtype)
    expand(output, values, torch.tensor([2, 2, 6], dtype=torch.int32), 7, 5)
    assert output.tolist() == [5, 5, 3, 3, 3, 3]


def test_right_and_wrong_kernels_are_told_apart() -> None:
    def into_a_copy(output: Tensor, *arguments: object) -> None:
        expand(output.long(), *arguments)  # type: ignore[arg-type]

    assert expands_wrongly(into_a_copy)
    assert not expands_wrongly(expand)


def norm_by_own_rows(out: Tensor, input: Tensor, weight: Tensor, epsilon: float) -> None:
    """As vLLM's CUDA kernel: layer l has row l of a weight with several rows."""
    weight = weight if weight.dim() == 1 else weight.view(len(weight), 1, 1, -1)
    out.copy_(input * torch.rsqrt(input.square().mean(-1, keepdim=True) + epsilon) * weight)


def norm_by_the_first_row(out: Tensor, input: Tensor, weight: Tensor, epsilon: float) -> None:
    """As vLLM's CPU kernel."""
    norm_by_own_rows(out, input, weight.reshape(-1, weight.shape[-1])[0], epsilon)


def test_each_layer_is_normed_by_its_own_weight() -> None:
    assert norms_wrongly(norm_by_the_first_row)
    assert not norms_wrongly(norm_by_own_rows)
    repaired = layer_by_layer(norm_by_the_first_row)
    assert not norms_wrongly(repaired)
    keys, weight = torch.randn(3, 5, 2, 8), torch.randn(3, 8)
    ours, theirs = torch.empty_like(keys), torch.empty_like(keys)
    repaired(ours, keys, weight, 1e-6)
    norm_by_own_rows(theirs, keys, weight, 1e-6)
    torch.testing.assert_close(ours, theirs)
    # A weight of one layer is the operator's own business.
    repaired(ours, keys, weight[1], 1e-6)
    norm_by_own_rows(theirs, keys, weight[1], 1e-6)
    assert torch.equal(ours, theirs)


def forgetting(vllm_config: Any) -> None:
    vllm_config.model_config.hf_text_config.rope_parameters.pop("mrope_section")


def vllm_config(method: str | None) -> Any:
    def model() -> Any:
        config = SimpleNamespace(
            rope_parameters={"rope_theta": 1e7, "mrope_section": [3, 3, 2], "mrope_interleaved": 1}
        )
        return SimpleNamespace(hf_config=config, hf_text_config=config)

    speculative = SimpleNamespace(method=method, draft_model_config=model())
    return SimpleNamespace(model_config=model(), speculative_config=speculative if method else None)


def test_an_mtp_drafter_has_as_many_rows_of_positions_as_its_target() -> None:
    assert forgets_the_drafter(forgetting)
    assert not forgets_the_drafter(for_both(forgetting))
    assert not forgets_the_drafter(lambda _config: None)  # Of images too: both have three rows.
    for method, left in (("mtp", {"rope_theta"}), ("eagle", None), (None, None)):
        config = vllm_config(method)
        for_both(forgetting)(config)
        assert "mrope_section" not in config.model_config.hf_text_config.rope_parameters
        if method:
            rope = config.speculative_config.draft_model_config.hf_config.rope_parameters
            assert rope.keys() == (left or {"rope_theta", "mrope_section", "mrope_interleaved"})


def test_vllm_finds_the_plugin() -> None:
    found = entry_points(group="vllm.general_plugins", name="specpipe")
    assert [point.load() for point in found] == [plugin.register]


def test_nothing_happens_unless_asked_for() -> None:
    code = (
        "import sys; from specpipe.stages.target.vllm.repairs.register import made, register;"
        "register(); sys.exit(any(m in sys.modules for m in ('vllm', 'torch')) or bool(made()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NAMES = """
import torchvision, torchvision.io, torchvision.transforms as T
import torchvision.transforms.v2.functional as functional
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.functional import pil_to_tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
try:
    functional.resize(1)
except NotImplementedError as error:
    print(torchvision.__version__, functional is v2.functional, T.InterpolationMode.BOX.value)
    print(error)
"""


@pytest.mark.slow
def test_a_torchvision_that_is_missing_is_stood_in_for_in_child_processes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from specpipe.stages.target.vllm.repairs import torchvision as module

    environment = {**os.environ, "PYTHONPATH": "/elsewhere"}
    monkeypatch.setattr(module, "find_spec", lambda name: f"a real {name}")
    assert with_stand_in(environment) == environment
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    found = with_stand_in(environment)
    assert found["PYTHONPATH"].endswith(f"{os.pathsep}/elsewhere")
    assert "torchvision" not in sys.modules
    done = subprocess.run(
        [sys.executable, "-c", NAMES], env=found, capture_output=True, text=True, check=False
    )
    refused = "torchvision.transforms.v2.functional.resize: torchvision is not installed"
    assert done.stdout.startswith(f"0.0.0 True box\n{refused}"), done.stderr[-2000:]


FAULTS = """
import json
from types import SimpleNamespace
import torch
from vllm import _custom_ops, platforms
from vllm.utils import cpu_triton_utils
platforms.current_platform.import_kernels()
from vllm.model_executor.models import config
from specpipe.stages.target.vllm.repairs import expansion, layered_norm, register, text_positions
family = config.Qwen3_5ForCausalLMConfig

def faults():
    return [
        expansion.expands_wrongly(cpu_triton_utils._expand_kernel_impl),
        layered_norm.norms_wrongly(_custom_ops.rms_norm),
        text_positions.forgets_the_drafter(family.verify_and_update_config),
    ]

def difference(module, name):
    # Of the context keys of a DFlash drafter of three layers, relative.
    keys, weight = torch.randn(3, 5, 2, 32), 1 + torch.randn(3, 32)
    drafter = SimpleNamespace(_k_norm_weights=weight, _rms_norm_eps=1e-6)
    found = getattr(module, name)._normalize_context_k(drafter, keys)
    right = torch.stack([torch.nn.functional.rms_norm(k, (32,), w, 1e-6)
                         for k, w in zip(keys, weight)])
    return ((found - right).norm() / right.norm()).item()

torch.manual_seed(0)
before = faults()
try:
    from vllm.model_executor.models import qwen3_5
    without = ""
except ImportError as error:
    without = str(error)
from vllm.model_executor.models import laguna_dflash, qwen3_dflash
kinds = [(qwen3_dflash, "DFlashQwen3Model"), (laguna_dflash, "DFlashLagunaModel")]
wrong = [difference(*kind) for kind in kinds]
register.register()
register.register()
right = [difference(*kind) for kind in kinds]
print(json.dumps({"before": before, "after": faults(), "made": register.made(),
    "without torchvision": without, "wrong": wrong, "right": right}))
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_the_installed_vllm_has_the_faults_and_register_repairs_them() -> None:
    """Where `before` is false, vLLM no longer has the fault: its module in `repairs` may go once
    no version of schemas/tested.py has it.
    """
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=os.environ | {ENVIRONMENT: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["before"] == [True, True, True]
    assert found["after"] == [False, False, False]
    assert found["made"] == ["expansion", "layered_norm", "text_positions"]
    assert min(found["wrong"]) > 0.1
    assert max(found["right"]) < 1e-6
    # Else the stand-in has no use.
    assert "torchvision" in found["without torchvision"].lower()
