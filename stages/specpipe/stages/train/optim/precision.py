"""Whether a device computes in the dtype that training asks for."""

import torch

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.train import TrainConfig


def check_dtype(config: TrainConfig, device: torch.device) -> None:
    """Raise ConfigError where bfloat16 is asked for and the GPU only emulates it."""
    if config.dtype != "bfloat16" or device.type != "cuda":
        return
    with torch.cuda.device(device):
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(device)
            raise ConfigError(f"dtype bfloat16: {name} has none; give --dtype float32")
