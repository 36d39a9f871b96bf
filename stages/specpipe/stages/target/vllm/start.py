"""Start a vLLM engine that captures hidden states, in processes of its own."""

import os
from typing import Any

import torch

from specpipe.schemas.errors import ConfigError, StoreError
from specpipe.schemas.records.dump import DumpIdentity
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.target.files.identity import cached_numbers, load_config, read_config
from specpipe.stages.target.files.location import local_folder
from specpipe.stages.target.vllm.arena import ArenaAddress
from specpipe.stages.target.vllm.plugin import CAPTURE
from specpipe.stages.target.vllm.repairs.register import ENVIRONMENT as CPU_FIX
from specpipe.stages.target.vllm.shared_memory import shortage

_SMALLEST_CACHE = 256 * 2**20
_CACHE_SLACK = 3
"""Requests end in blocks that are not full; finished ones wait until their states are copied."""
_GPU_SHARE = 0.85
"""Of the GPU's memory; the verifier's head and its logits need some beside the engine."""
_WHOLE_PROMPTS = {"enable_chunked_prefill": False}
"""vLLM turns a request's random generator back after a part of a prompt, which those of a CPU
cannot do: with a seed of its own, a prompt must be read in one step."""
_TEXT_ONLY = {"language_model_only": True}
"""Of a model that also takes images, the text decoder alone is loaded."""
_ROPES_BY_LENGTH = ("dynamic", "longrope", "su")
"""Ropes of these kinds depend on the longest text that the engine is made for."""


def start_engine(
    config: DumpConfig,
    identity: DumpIdentity,
    captured: tuple[int, ...],
    longest: int,
    arena: ArenaAddress | None,
) -> Any:
    """A vllm.LLMEngine whose connector writes the states of the layers `captured` to the arena.

    Without an arena it is the same engine, but captures nothing: what a dump's speed is held
    against. `longest` is the most tokens of one text. Raises ConfigError where vLLM does not start,
    StoreError where that is for want of shared memory.
    """
    _set_environment(captures=arena is not None)
    from vllm import LLMEngine
    from vllm.engine.arg_utils import EngineArgs

    ours = _arguments(config, identity, captured, longest, arena)
    try:
        arguments = EngineArgs(**ours)
        return LLMEngine.from_engine_args(arguments, enable_multiprocessing=True)
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        # One process on a GPU needs no shared memory.
        is_shared = not torch.cuda.is_available() or ours.get("tensor_parallel_size", 1) != 1
        if is_shared and (reason := shortage()):
            raise StoreError(f"vLLM does not start: {reason}") from error
        text = " ".join(str(error).split())
        raise ConfigError(
            f"vLLM does not start with target {config.target}: {text} (its own log, above, has the "
            "reason; --backend hf runs the target in transformers)"
        ) from error


def _arguments(
    config: DumpConfig,
    identity: DumpIdentity,
    captured: tuple[int, ...],
    longest: int,
    arena: ArenaAddress | None,
) -> dict[str, Any]:
    folder = local_folder(config.target, config.revision, with_code=config.trust_remote_code)
    is_cpu = not torch.cuda.is_available()
    on_device = (
        {"kv_cache_memory_bytes": _cache_bytes(config, identity, captured, longest)}
        if is_cpu
        else {"gpu_memory_utilization": _GPU_SHARE}
    )
    return {
        "max_model_len": _max_model_len(config, identity, longest),
        "max_num_batched_tokens": max(config.batch_tokens, longest + 1 if is_cpu else 2),
        "enforce_eager": is_cpu,
        **on_device,
        **(_WHOLE_PROMPTS if is_cpu and config.generate else {}),
        **(_TEXT_ONLY if takes_images(config) else {}),
        **config.engine,
        "model": str(folder),
        "dtype": identity.compute_dtype,
        "trust_remote_code": config.trust_remote_code,
        # Stop texts need the tokenizer, nothing else does.
        "skip_tokenizer_init": not (config.generate and config.generate.stop),
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "enable_prefix_caching": False,
        **(_capture(captured, arena) if arena else {}),
    }


def takes_images(config: DumpConfig) -> bool:
    """Whether the target is a text decoder inside a model with other parts."""
    folder = local_folder(config.target, config.revision, with_code=config.trust_remote_code)
    whole = load_config(folder, trust_remote_code=config.trust_remote_code)
    return whole.get_text_config(decoder=True) is not whole


def _capture(captured: tuple[int, ...], arena: ArenaAddress) -> dict[str, Any]:
    return {
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {
                "hf_config": {"eagle_aux_hidden_state_layer_ids": list(captured)}
            },
        },
        "kv_transfer_config": {
            "kv_connector": "StatesConnector",
            "kv_connector_module_path": "specpipe.stages.target.vllm.connector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"arena": arena.to_dict()},
        },
    }


def _max_model_len(config: DumpConfig, identity: DumpIdentity, longest: int) -> int:
    """vLLM takes no text without room for a token behind it."""
    raw = read_config(
        local_folder(config.target, config.revision, with_code=config.trust_remote_code)
    )
    raw = raw.get("text_config") or raw
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    return (identity.context_length if kind in _ROPES_BY_LENGTH else longest) + 1


def _cache_bytes(
    config: DumpConfig, identity: DumpIdentity, captured: tuple[int, ...], longest: int
) -> int:
    """Room for two batches, or the longest text, of keys, values and states on a CPU."""
    whole = load_config(
        local_folder(config.target, config.revision, with_code=config.trust_remote_code),
        trust_remote_code=config.trust_remote_code,
    )
    numbers = cached_numbers(whole, identity.target.num_layers)
    numbers += len(captured) * identity.target.hidden_size
    itemsize = getattr(torch, identity.compute_dtype).itemsize
    tokens = max(2 * config.batch_tokens, longest + 1)
    return max(_SMALLEST_CACHE, int(_CACHE_SLACK * tokens * numbers * itemsize))


def _quiet_warnings() -> str:
    """The Python warnings to ignore, with that of vLLM itself about torch, in each process."""
    ours = "ignore:`torch.distributed.reduce_op`:FutureWarning"
    given = [
        one for one in os.environ.get("PYTHONWARNINGS", "").split(",") if one not in ("", ours)
    ]
    return ",".join([*given, ours])


def _set_environment(*, captures: bool) -> None:
    """What the engine's processes go by, for which vLLM has no argument."""
    os.environ.update(
        {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            # A fork would take over the threads' locks, but not the threads.
            "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
            # Standard output is for the command's result.
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
            CAPTURE: "1" if captures else "0",
            CPU_FIX: "1",
            "PYTHONWARNINGS": _quiet_warnings(),
        }
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # A process that is killed leaves its shared memory behind: of the 60 s that the engine has for
    # ending (backend.py), its workers get these.
    os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "20")
    # On a CPU, each engine would tell of its NUMA nodes.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # GNU OpenMP's spinning threads starve each other where cores are shared: measured 5x slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
