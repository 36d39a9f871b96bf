"""A torchvision that can be imported, and nothing else.

transformers and vLLM import names of it for models that take images, also where the target takes
text alone. What is called of it refuses.
"""

import sys
from enum import Enum
from types import ModuleType
from typing import Any

__version__ = "0.0.0"


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class _Part(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_arguments: Any, **_named: Any) -> None:
            raise NotImplementedError(
                f"{self.__name__}.{name}: torchvision is not installed; specpipe's stand-in for it"
                " is for text alone"
            )

        return refuse


for _name in ("io", "transforms", "transforms.functional", "transforms.v2",
              "transforms.v2.functional"):  # fmt: skip
    _part = _Part(f"{__name__}.{_name}")
    sys.modules[_part.__name__] = _part
    _above, _, _own = _part.__name__.rpartition(".")
    setattr(sys.modules[_above], _own, _part)
sys.modules[f"{__name__}.transforms"].InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
