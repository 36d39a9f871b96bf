"""The shape of a fresh EAGLE-3 drafter."""

from transformers import PretrainedConfig

from specpipe.schemas.drafters.eagle3 import SWITCHES, Eagle3Settings, Eagle3Shape
from specpipe.stages.drafters.parts.layer_shape import fresh_shape


def drafter_shape(
    target: PretrainedConfig,
    settings: Eagle3Settings,
    aux_layers: tuple[int, ...],
    vocab_size: int,
    draft_vocab_size: int,
) -> Eagle3Shape:
    """Layers of the target's width, heads and rope, where the settings do not say otherwise.

    Raises ConfigError where the settings do not fit each other.
    """
    further = {
        "layer_type": settings.layer_type,
        "vocab_size": vocab_size,
        "draft_vocab_size": draft_vocab_size,
        "aux_layers": aux_layers,
        **{switch: getattr(settings, switch) for switch in SWITCHES},
    }
    return fresh_shape(Eagle3Shape, target, settings, further)
