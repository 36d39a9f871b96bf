"""Options of vLLM: the user's, by vLLM's own names, and those that capture needs."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from specpipe.schemas.errors import ConfigError

RESERVED = {
    "model": "--target",
    "tokenizer": "--target",
    "revision": "--revision",
    "tokenizer_revision": "--revision",
    "dtype": "--dtype",
    "trust_remote_code": "--trust-remote-code",
    "speculative_config": None,
    "kv_transfer_config": None,
    "enable_prefix_caching": None,
    "skip_tokenizer_init": None,
    "disable_log_stats": None,
    "use_tqdm_on_load": None,
    "runner": None,
    "data_parallel_size": "--workers",
}
"""Options that specpipe sets, and where it takes them from."""

SPEED_ONLY = frozenset(
    {
        "async_scheduling",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "disable_custom_all_reduce",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "load_format",
        "max_cudagraph_capture_size",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_partial_prefills",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "tensor_parallel_size",
    }
)
"""Options that change states by rounding at most. All others belong to a dump's identity."""


def check_options(options: dict[str, Any]) -> None:
    """Raise ConfigError for an option that vLLM does not have, or that is ours to set."""
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in fields(EngineArgs)}
    for name in options:
        if name in RESERVED:
            instead = f"use {RESERVED[name]}" if RESERVED[name] else "specpipe sets it itself"
            raise ConfigError(f"engine option {name}: {instead}")
        if name not in known:
            near = get_close_matches(name.replace("-", "_"), known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"engine option {name}: vLLM has no such argument{hint}")


def state_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that may change the states by more than rounding."""
    return {name: value for name, value in sorted(options.items()) if name not in SPEED_ONLY}
