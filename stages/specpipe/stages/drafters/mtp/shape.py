"""The shape of an MTP drafter: the target's config, with one MTP layer."""

import json
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from specpipe.schemas.drafters.mtp import MtpShape
from specpipe.schemas.drafters.mtp_families import FAMILIES, MtpFamily, family_of, text_settings
from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.mtp.target_layer import layer_config
from specpipe.stages.drafters.parts.artifact.own_key import OWN

"""What the artifact's config says beyond the target's."""

_VOLATILE = ("_name_or_path", "transformers_version")


def drafter_shape(
    target: PretrainedConfig, aux_layers: tuple[int, ...], vocab_size: int
) -> MtpShape:
    """Raises ConfigError for a target of no family that has an MTP layer, or of other layers than
    the last."""
    shape = shape_of_config(json.loads(target.to_json_string()), vocab_size)
    check_layers(shape, aux_layers)
    layer_config(shape)
    return shape


def check_layers(shape: MtpShape, aux_layers: tuple[int, ...]) -> None:
    if aux_layers != shape.aux_layers:
        last = shape.num_target_layers
        raise ConfigError(
            f"drafter mtp takes layer {last}, the last one's output, and no other, not"
            f" {', '.join(map(str, aux_layers))}; give --layers {last}, of a dump that holds it"
        )


def shape_of_config(config: Mapping[str, Any], vocab_size: int | None = None) -> MtpShape:
    """Of a target's config.json, or of an artifact's; raises ConfigError for one of no family."""
    family = family_of(config)
    if family is None:
        raise ConfigError(
            f"drafter mtp: a target {config.get('architectures')} is of none of the families that"
            f" have an MTP layer here ({', '.join(FAMILIES)}); give another --drafter"
        )
    text = text_settings(config)
    size = text["vocab_size"] if vocab_size is None else vocab_size
    return MtpShape(
        target_hidden_size=text["hidden_size"],
        vocab_size=size,
        draft_vocab_size=size,
        aux_layers=(text["num_hidden_layers"],),
        family=family.name,
        target_config=with_one_layer(family, config),
    )


def with_one_layer(family: MtpFamily, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with one MTP layer, which then drafts every step in every engine."""
    out = {key: value for key, value in config.items() if key not in (*_VOLATILE, OWN)}
    if text_settings(config) is not config:
        out["text_config"] = {**out["text_config"], family.count_key: 1}
        if family.count_key in out:
            out[family.count_key] = 1
    else:
        out[family.count_key] = 1
    return out
