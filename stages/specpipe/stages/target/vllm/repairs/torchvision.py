"""A stand-in for torchvision, for engines whose environment has none.

vLLM and transformers import it with Qwen3.5, which may take images, also for a Qwen3.5 that takes
text alone. pip's wheel is built for CUDA and breaks `import transformers` beside a CPU torch. The
engine's processes, and those that they start, find the stand-in by `PYTHONPATH`; no other process
does.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

_FOLDER = Path(__file__).parent / "stand_in"


def with_stand_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which torchvision can be imported; the same where it can be anyway."""
    if find_spec("torchvision") is not None:
        return dict(environment)
    paths = [str(_FOLDER), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
