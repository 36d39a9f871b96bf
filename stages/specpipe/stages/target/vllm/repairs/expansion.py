"""The temperature of a batch's tokens.

vLLM 0.32 on a CPU without Triton expands per-request values (temperature, top-k, top-p) to
per-token ones through a C++ kernel that is handed an int64 *copy* of the output
(`_expand_kernel_impl` in vllm/utils/cpu_triton_utils.py). A float output, which the temperature
is, stays uninitialised memory, so that with a drafter at a temperature above 0 the target's
probabilities are garbage and the output is not the target's any more.
"""

from typing import Any


def repair() -> bool:
    """Replace the kernel where it is wrong; False where it is right."""
    from vllm.utils import cpu_triton_utils

    if not expands_wrongly(cpu_triton_utils._expand_kernel_impl):
        return False
    cpu_triton_utils._expand_kernel_impl = expand
    return True


def expand(
    output: Any,
    input_val: Any,
    cu_num_tokens: Any,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: Any = None,
) -> None:
    """output[i] = the value of token i's request, `replace_from` replaced by `replace_to`.

    `output` [tokens] and `input_val` [requests] are of one dtype, whichever; `cu_num_tokens`
    [requests] holds the number of tokens up to and including each request. The signature is that
    of vLLM's `_expand_kernel_impl`; vLLM passes the arguments by position or by its names.
    """
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    values = input_val.masked_fill(input_val == replace_from, replace_to)
    output.copy_(values.repeat_interleave(counts.long()))


def expands_wrongly(kernel: Any) -> bool:
    """Whether `kernel` leaves a float output unwritten: tried on two requests of 2 and 1 tokens."""
    import torch

    output = torch.full((3,), -1.0)
    kernel(output, torch.tensor([0.5, 0.0]), torch.tensor([2, 3], dtype=torch.int32), 0, 1)
    return output.tolist() != [0.5, 0.5, 1.0]
