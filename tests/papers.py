"""What was default before there was a recipe: the papers' optimiser and layers."""

from typing import Any

PAPERS: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "learning_rate": 4e-4,
    "norm_before_residual": False,
    "norm_before_fc": False,
    "norm_output": False,
    "fresh_layer": True,
    "state_loss": 0.0,
}
