"""The package that transformers needs to run a quantised target."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from specpipe.stages.untrusted.foreign import one_line


def missing_package(config: PreTrainedConfig) -> str | None:
    """Transformers' words on the package that it lacks for the weights of a target; None: none."""
    settings: Any = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    try:
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment()
    except ImportError as error:
        return one_line(error)
    except Exception:  # a device that is not here, or settings that loading refuses in its words
        return None
    return None
