"""`--worker-index auto`: which worker this process is, by what its scheduler says."""

from collections.abc import Mapping

from specpipe.schemas.errors import ConfigError


def own_share(environment: Mapping[str, str], worker_count: int | None) -> dict[str, int]:
    """`worker_index` and `worker_count` of this process.

    A Kubernetes indexed job says only its JOB_COMPLETION_INDEX: the count comes from the flag.
    SLURM says both, for the tasks of a job and for the jobs of an array, and for tasks of jobs of
    an array. Raises ConfigError where nothing says it, or something says otherwise.
    """
    if "JOB_COMPLETION_INDEX" in environment:
        if worker_count is None:
            raise ConfigError(
                "--worker-index auto in a Kubernetes job needs --worker-count, the job's "
                "completions, which Kubernetes does not tell"
            )
        index, count = _number(environment, "JOB_COMPLETION_INDEX"), worker_count
    elif "SLURM_PROCID" in environment or "SLURM_ARRAY_TASK_ID" in environment:
        index = _number(environment, "SLURM_PROCID", 0)
        count = _number(environment, "SLURM_NTASKS", 1)
        if "SLURM_ARRAY_TASK_ID" in environment:
            first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
            step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
            index += count * ((_number(environment, "SLURM_ARRAY_TASK_ID") - first) // step)
            count *= _number(environment, "SLURM_ARRAY_TASK_COUNT")
        if worker_count not in (None, count):
            raise ConfigError(
                f"--worker-count {worker_count}, but SLURM says {count}: leave it out"
            )
    else:
        raise ConfigError(
            "--worker-index auto: neither SLURM_PROCID, SLURM_ARRAY_TASK_ID nor "
            "JOB_COMPLETION_INDEX is set; give a number"
        )
    if not 0 <= index < count:
        raise ConfigError(f"--worker-index auto: worker {index} of {count}; give numbers instead")
    return {"worker_index": index, "worker_count": count}


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, default)
    try:
        return int(str(value))
    except ValueError:
        raise ConfigError(f"--worker-index auto: {name} is {value!r}, not a number") from None
