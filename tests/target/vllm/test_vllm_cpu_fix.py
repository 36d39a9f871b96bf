import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import torch
from torch import Tensor

from specpipe.stages.target.vllm import plugin
from specpipe.stages.target.vllm.cpu_fix import ENVIRONMENT, expand, expands_wrongly


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


def test_vllm_finds_the_plugin() -> None:
    found = entry_points(group="vllm.general_plugins", name="specpipe")
    assert [point.load() for point in found] == [plugin.register]


def test_nothing_happens_unless_asked_for() -> None:
    code = (
        "import sys; from specpipe.stages.target.vllm.cpu_fix import register; register();"
        "sys.exit(any(m in sys.modules for m in ('vllm', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.vllm
def test_register_leaves_a_right_kernel() -> None:
    """In a process of its own: registered, vLLM's kernel writes its output."""
    code = (
        "from specpipe.stages.target.vllm import cpu_fix as fix; fix.register();"
        "from vllm.utils import cpu_triton_utils as kernels;"
        "assert not fix.expands_wrongly(kernels._expand_kernel_impl)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {ENVIRONMENT: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
