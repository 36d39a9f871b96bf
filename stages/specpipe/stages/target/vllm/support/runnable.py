"""Whether vLLM can run a target for its hidden states."""

from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedConfig

from specpipe.schemas.tested import is_tested
from specpipe.stages.target.files.identity import head_sizes, load_config, read_config
from specpipe.stages.target.vllm.support.aux_interface import gives_aux_states
from specpipe.stages.target.vllm.support.families import DUMPED
from specpipe.stages.target.vllm.support.servable import installed_version


def is_installed() -> bool:
    return find_spec("vllm") is not None


def why_not(folder: Path, device: str, *, trust_remote_code: bool = False) -> str | None:
    """Why vLLM cannot dump this target on this device; None where it can.

    Imports vLLM, but starts nothing.
    """
    from vllm.platforms import current_platform

    if ":" in device:
        return f"device {device}: vLLM takes all GPUs it sees; choose by CUDA_VISIBLE_DEVICES"
    if device != "auto" and device != current_platform.device_type:
        return f"device {device}: the vLLM that is installed runs on {current_platform.device_type}"
    architectures = read_config(folder).get("architectures") or []
    if len(architectures) != 1:
        return "the target's config does not name its architecture"
    (architecture,) = architectures
    is_ours = architecture in DUMPED and is_tested("vllm", installed_version() or "")
    if not is_ours and (reason := _without_states(architecture)):
        return reason
    config = load_config(folder, trust_remote_code=trust_remote_code)
    return _without_kernel(config) if current_platform.is_cpu() else None


def _without_states(architecture: str) -> str | None:
    from vllm.model_executor.models.registry import ModelRegistry

    if architecture not in ModelRegistry.get_supported_archs():
        return f"vLLM does not know {architecture}"
    try:
        model = ModelRegistry.models[architecture].load_model_cls()
    except Exception as error:  # whatever the model's file imports: torchvision, for wrappers
        return f"vLLM cannot load its {architecture} here ({type(error).__name__}: {error})"
    if not gives_aux_states(model):
        return f"vLLM gives no hidden states of {architecture}"
    return None


def _without_kernel(config: PreTrainedConfig) -> str | None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if not (unknown := [size for size in head_sizes(config) if size not in sizes]):
        return None
    return (
        f"vLLM's CPU attention has no heads of size {unknown[0]}, only {', '.join(map(str, sizes))}"
    )
