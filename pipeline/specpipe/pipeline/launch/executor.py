"""Where the workers of a dump run."""

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import Execute


def executor_of(config: DumpConfig) -> Execute | None:
    """What runs the workers; None for the one worker of this process."""
    if config.executor == "local" and config.workers == 1:
        return None
    if config.out.startswith("memory://"):
        raise ConfigError(
            "--out memory:// is the memory of this process: workers in other processes need a "
            "store that all of them reach"
        )
    if config.executor == "ray":
        from specpipe.pipeline.launch.ray import execute

        return execute
    from specpipe.pipeline.launch.local import execute

    return execute
