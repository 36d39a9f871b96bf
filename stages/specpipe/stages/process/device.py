"""The device that a process computes on."""

import torch

from specpipe.schemas.errors import ConfigError


def choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r}: {error}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: torch sees no GPU; give --device cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r}: torch sees {torch.cuda.device_count()} GPUs")
    if chosen.type != "cuda":
        try:
            torch.empty(1, device=chosen).tolist()
        except Exception as error:
            raise ConfigError(f"device {device!r} computes nothing here: {error}") from error
    return chosen
