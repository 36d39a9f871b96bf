"""Which part of a machine each engine gets."""

from collections.abc import Mapping, Sequence
from math import prod

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig

_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")


def gpus_per_engine(config: DumpConfig, backend: str) -> int:
    """GPUs of one engine, where it runs on GPUs."""
    if backend == "hf":
        return 1
    return prod(int(config.engine.get(name, 1)) for name in _PARALLEL)


def visible_gpus(config: DumpConfig, environment: Mapping[str, str]) -> list[str]:
    """The GPUs of this machine by CUDA's names; none where the target runs on the CPU."""
    if config.device == "cpu":
        return []
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def engine_environments(
    config: DumpConfig,
    gpus: Sequence[str],
    num_gpus: int,
    num_cores: int,
    environment: Mapping[str, str],
) -> list[dict[str, str]]:
    """The environment variables of each of `config.workers` engines, `num_gpus` GPUs to each.

    Raises ConfigError where there are too few GPUs, or one is chosen for all.
    """
    num_engines = config.workers
    threads = {"OMP_NUM_THREADS": str(max(1, num_cores // num_engines))}
    if not gpus:
        # Each engine of vLLM's CPU build would bind its threads to the same cores.
        threads["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        return [threads | dict(environment)] * num_engines
    if ":" in config.device:
        raise ConfigError(
            f"--device {config.device} names one GPU for {num_engines} workers: leave it out, or "
            "choose the GPUs with CUDA_VISIBLE_DEVICES"
        )
    if len(gpus) < num_engines * num_gpus:
        raise ConfigError(
            f"--workers {num_engines} of {num_gpus} GPU{'s' if num_gpus > 1 else ''} each need "
            f"{num_engines * num_gpus} GPUs, this machine shows {len(gpus)}: lower --workers"
        )
    return [
        threads
        | dict(environment)
        | {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * num_gpus : (i + 1) * num_gpus])}
        for i in range(num_engines)
    ]
