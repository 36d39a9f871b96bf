"""Whether the engine serves what is exported: said before anything is spent, and in the card."""

from collections.abc import Callable, Sequence

import torch

from specpipe.schemas.errors import ConfigError
from specpipe.stages.target.vllm.support.engine_needs import EngineNeeds
from specpipe.stages.target.vllm.support.families import ENVIRONMENT
from specpipe.stages.target.vllm.support.servable import Servable, servable


def check_served(
    architecture: str,
    needs: EngineNeeds,
    levels: Sequence[str],
    report: Callable[[str], None],
    *,
    required: bool = False,
) -> Servable:
    """Warn where a `vllm serve` in this environment would not take the drafter.

    Raises ConfigError where it is required to, and where level `serve` would start an engine in
    vain.
    """
    support = servable(architecture, needs)
    if required:
        support.require()
    if "serve" in levels and support.how == "no":
        raise ConfigError(f"{support.in_words}: leave serve out of --validation (docs/targets.md)")
    if "serve" in levels and not support.is_served_on_cpu and not torch.cuda.is_available():
        raise ConfigError(
            f"{support.in_words}, and there is no GPU here: leave serve out of --validation, or run"
            " it where there is one"
        )
    if not support.is_served:
        report(f"warning: {support.in_words}")
    return support


def card_lines(served: Servable) -> list[str]:
    """What the model card says of the engine that is needed."""
    if served.how == "plugin":
        return [
            f"vLLM {served.vllm} gives no auxiliary hidden states of {served.architecture} by"
            " itself. In the environment of `vllm serve`, install specpipe (`pip install .` in its"
            f" checkout) and set `{ENVIRONMENT}=1`: its plugin adds them, and"
            " the rest of vLLM stays as it is.",
            "",
        ]
    if served.how in ("vllm", "transformers"):
        return []
    return [f"**{served.in_words[0].upper()}{served.in_words[1:]}.**", ""]


def serve_prefix(served: Servable) -> str:
    """What stands before `vllm serve`."""
    return f"{ENVIRONMENT}=1 " if served.how == "plugin" else ""
