"""The shape of a fresh EAGLE-3 drafter."""

from transformers import PretrainedConfig

from specpipe.schemas.drafters.eagle3 import Eagle3Settings, Eagle3Shape
from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.parts.layer_shape import check_layers, values_of_layers
from specpipe.stages.untrusted.foreign import foreign_call


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
    width = target.get_text_config(decoder=True).hidden_size
    with foreign_call("the target's config fits no drafter", ConfigError):
        shape = Eagle3Shape(
            layer_type=settings.layer_type,
            **values_of_layers(target, settings, settings.hidden_size_or(width)),
            vocab_size=vocab_size,
            draft_vocab_size=draft_vocab_size,
            aux_layers=aux_layers,
            norm_before_residual=settings.norm_before_residual,
            norm_before_fc=settings.norm_before_fc,
            fc_norm=settings.fc_norm,
            norm_output=settings.norm_output,
        )
    check_layers(shape)
    return shape
