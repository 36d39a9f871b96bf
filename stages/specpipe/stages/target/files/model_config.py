"""A model's config.json, of a target or of a dump's target, as transformers' own class for it."""

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from specpipe.schemas.errors import ConfigError, SpecpipeError
from specpipe.stages.untrusted.foreign import foreign_call
from specpipe.stages.untrusted.json_text import parse_object

_CODE = ("auto_map",)
"""Says which code of the folder makes the model."""
_CHOSEN_HERE = (
    # A kernel by the id of a hub's repository is fetched and run.
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    # Another file of weights than the one that is hashed.
    "transformers_weights",
    # A name for each label is made, however many there are.
    "num_labels",
)
_LAYERS = re.compile(r"(num_|n_)?(hidden_|decoder_|encoder_|nextn_predict_|mtp_)?layers?")
_MOST = {"num_hidden_layers": 1000, "hidden_size": 2**20, "vocab_size": 2**26}
"""Building a model takes time and memory by its layers, even without weights."""

_SPECIAL_FLOATS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def parse_config(text: bytes, where: str, refuse: type[SpecpipeError]) -> dict[str, Any]:
    """What a config.json says, word for word; raises `refuse` where it is no JSON object.

    NaN and Infinity, which Python writes for other numbers, are taken: real configs have them.
    """
    return parse_object(text, where, refuse, allow_non_finite=True)


def build_config(
    raw: dict[str, Any], what: str, refuse: type[SpecpipeError], *, with_code: bool = False
) -> PreTrainedConfig:
    """The config of a causal language model from what its config.json says.

    Without `with_code` no code of the folder is run. What names kernels and other files is left
    out in any case: those are chosen here. Raises `refuse`, beginning with `what`, where
    transformers cannot take it; ConfigError for a model type that transformers does not know.
    """
    cleaned = _cleaned(raw, () if with_code else _CODE, what, refuse)
    check_known(cleaned.get("model_type"))
    with foreign_call(f"{what}: transformers cannot read it", refuse):
        with tempfile.TemporaryDirectory(prefix="specpipe-config-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(cleaned), encoding="utf-8")
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_sizes(config, what, refuse)
    return config


def check_known(model_type: object) -> None:
    """Raises ConfigError for a target whose head only its own code could load."""
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ConfigError(
            f"transformers does not know the target's model type {model_type!r}; its head cannot "
            "be loaded from a dump without running code that came with it"
        )


def check_sizes(config: PreTrainedConfig, what: str, refuse: type[SpecpipeError]) -> None:
    """Raise `refuse` unless the decoder has layers, a width and a vocabulary, of bounded sizes."""
    text = config.get_text_config(decoder=True)
    for name, most in _MOST.items():
        size = getattr(text, name, None)
        if not isinstance(size, int) or not 1 <= size <= most:
            raise refuse(f"{what}: its {name} is {size!r}, not a number from 1 to {most}")
    for name, value in vars(text).items():
        if "eps" in name and isinstance(value, float) and not math.isfinite(value):
            raise refuse(f"{what}: its {name} is {value}")


def _cleaned(value: Any, left_out: tuple[str, ...], what: str, refuse: type[SpecpipeError]) -> Any:
    """The same without the keys that are left out; floats as they are meant."""
    if isinstance(value, list):
        return [_cleaned(entry, left_out, what, refuse) for entry in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"__float__"} and str(value["__float__"]) in _SPECIAL_FLOATS:
        return _SPECIAL_FLOATS[str(value["__float__"])]
    most = _MOST["num_hidden_layers"]
    for key, number in value.items():
        if isinstance(number, int) and number > most and _LAYERS.fullmatch(key):
            raise refuse(f"{what}: its {key} is {number}, more than {most}")
    return {
        key: _cleaned(entry, left_out, what, refuse)
        for key, entry in value.items()
        if key not in (*left_out, *_CHOSEN_HERE)
        # "auto" is the checkpoint's own, as if nothing was said.
        and not (key in ("dtype", "torch_dtype") and entry == "auto")
    }
