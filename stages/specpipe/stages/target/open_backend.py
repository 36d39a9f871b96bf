"""Which backend runs a target, and opening it."""

from typing import Literal

from specpipe.schemas.config import DumpConfig
from specpipe.schemas.dump import DumpIdentity
from specpipe.stages.target.backend import Backend
from specpipe.stages.target.hf import HfBackend


def choose_backend(config: DumpConfig) -> Literal["hf", "vllm"]:
    """The backend that `auto` stands for; raises ConfigError where the one asked for is missing."""
    return "hf"


def open_backend(config: DumpConfig, identity: DumpIdentity) -> Backend:
    """Load the target of a dump in the backend of its identity."""
    return HfBackend(config, identity.layers)
