"""The early note whether an engine will serve the drafter."""

from typing import TYPE_CHECKING

from specpipe.pipeline.terminal.console import is_first_process, note
from specpipe.schemas.drafters.registry import DEFAULT
from specpipe.schemas.errors import SpecpipeError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.schemas.settings.train import TrainConfig

if TYPE_CHECKING:
    from specpipe.stages.target.vllm.support.servable import Servable


def say_served(target: str, *, required: bool, drafter: str = DEFAULT) -> "Servable":
    """Warn where vLLM does not serve such drafters for a target, as this process has it.

    Both are architectures. Raises ConfigError where it is required to.
    """
    from specpipe.stages.drafters.registry import architecture
    from specpipe.stages.target.vllm.support.servable import servable

    support = servable(target, architecture(drafter).serving)
    if required:
        support.require()
    if not support.is_served and is_first_process():
        note(f"warning: {support.in_words}")
    return support


def say_served_of_dump(config: DumpConfig) -> None:
    """The same of a dump's target, of which only the config is read."""
    from specpipe.stages.target.files.identity import architecture_of
    from specpipe.stages.target.files.location import local_folder

    folder = local_folder(config.target, config.revision, with_weights=False)
    architecture = architecture_of(folder, trust_remote_code=config.trust_remote_code)
    say_served(architecture, required=config.require_servable)


def say_served_of_training(config: TrainConfig) -> None:
    """The same of the target whose states a drafter is trained on."""
    from specpipe.stages.dump_plan.claim import read_claim
    from specpipe.stages.storage.store.folder import Folder

    try:
        identity = read_claim(Folder.open(config.dump))
    except SpecpipeError:
        return  # The run itself says what is wrong with its dump, and in what order.
    if identity is not None:
        say_served(
            identity.target.architecture,
            required=config.require_servable,
            drafter=config.drafter.kind,
        )
