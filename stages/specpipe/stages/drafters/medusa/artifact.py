"""A Medusa artifact, as vLLM 0.32 reads it, in its own names or in those of the authors' code.

vLLM reads every key of the config with `num` and `heads` in its name as `num_heads`, and every one
with `num` and `layers` as `num_hidden_layers`; the last one counts.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from specpipe.schemas.drafters.medusa import MedusaShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE, LM_HEAD
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    TargetFacts,
    mismatches,
    missing_and_unknown,
)
from specpipe.stages.drafters.parts.artifact.final_layer import (
    declared_layers_of_target,
    known_final_layer,
    target_mismatches,
)
from specpipe.stages.drafters.parts.artifact.own_key import OWN, OwnKeyFormat, own_settings

ARCHITECTURE = "MedusaModel"
MOST = 64
"""Heads, or blocks of a head."""

KEYS = frozenset(
    {
        "architectures",
        "model_type",
        "hidden_size",
        "vocab_size",
        "truncated_vocab_size",
        "num_heads",
        "num_hidden_layers",
        "medusa_fc_bias",
        "original_lm_head",
        OWN,
    }
)

_AUTHORS = re.compile(r"(?:medusa_heads\.)?(\d+)\.(\d+)\.(linear\.)?(weight|bias)")
"""`0.0.linear.weight` is a residual block, `0.1.weight` the head after it."""


class MedusaFormat(OwnKeyFormat[MedusaShape]):
    """vLLM's MedusaConfig; the target's number of layers stands in `specpipe`."""

    name = "medusa"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return True

    def config(self, drafter: Drafter[MedusaShape]) -> dict[str, Any]:
        shape = drafter.shape
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "medusa",
            "hidden_size": shape.target_hidden_size,
            "vocab_size": shape.vocab_size,
            "truncated_vocab_size": shape.vocab_size,
            "num_heads": shape.num_heads,
            "num_hidden_layers": shape.num_layers,
            "medusa_fc_bias": shape.block_bias,
            "original_lm_head": not shape.own_lm_head,
            **own_settings(drafter, target_layers=shape.aux_layers[0]),
        }

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        misread = [
            f"{CONFIG_FILE}: vLLM reads key {key!r} as {ours!r}, which is there too"
            for key in sorted(config)
            for ours, word in (("num_heads", "heads"), ("num_hidden_layers", "layers"))
            if "num" in key and word in key and key != ours
        ]
        return misread + missing_and_unknown(CONFIG_FILE, config, KEYS, KEYS)

    def problems(
        self,
        config: Mapping[str, Any],
        shape: MedusaShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        expected = (
            ("architectures", config["architectures"], [ARCHITECTURE]),
            ("model_type", config["model_type"], "medusa"),
            ("truncated_vocab_size", config["truncated_vocab_size"], shape.vocab_size),
        )
        problems = mismatches(expected)
        return problems + self.target_problems(config, target)


def recognises(files: ArtifactFiles) -> bool:
    """By what the config says, or by names that only the authors' code gives."""
    config = files.config
    if config.get("model_type") == "medusa" or "medusa_num_heads" in config:
        return True
    return any(name.startswith("medusa_heads.") for name in files.tensors)


def read(files: ArtifactFiles, target: OfTarget | None) -> Artifact:
    """Raises ConfigError where it is none for this target."""
    where, config = f"artifact {files.folder}", files.config
    if "token_map" in files.tensors:
        raise ConfigError(f"{where} has a token_map: vLLM serves no Medusa with a draft vocabulary")
    num_heads = _number(config, "heads", 5)
    num_layers = _number(config, "layers", 1)
    tensors = own_names(files)
    first = tensors.get("blocks.0.layers.0.weight")
    if first is None or first.ndim != 2:
        raise ConfigError(f"{where} has no blocks.0.layers.0.weight: it is no Medusa drafter")
    head = tensors.get(LM_HEAD, tensors.get("lm_heads.0.weight"))
    vocab_size = config.get("vocab_size", None if head is None else len(head))
    if vocab_size is None:
        raise ConfigError(f"{where} has no lm_head, and its {CONFIG_FILE} no vocab_size")
    known = known_final_layer(config, target)
    if known is None:
        raise ConfigError(f"{where} does not say how many layers its target has; give --target")
    if target is not None and (vocab_size, first.shape[1]) != (
        target.vocab_size,
        target.hidden_size,
    ):
        raise ConfigError(
            f"{where} is for a target with a vocabulary of {vocab_size} and {first.shape[1]} wide"
            f" states, not for this one with {target.vocab_size} and {target.hidden_size}"
        )
    shape = MedusaShape(
        target_hidden_size=int(first.shape[1]),
        vocab_size=vocab_size,
        draft_vocab_size=vocab_size,
        aux_layers=known,
        num_heads=num_heads,
        num_layers=num_layers,
        block_bias="blocks.0.layers.0.bias" in tensors,
        own_lm_head=LM_HEAD not in tensors,
    )
    return Artifact(files.folder, config, shape, tensors, known)


def declared_shape(config: Mapping[str, Any]) -> MedusaShape:
    """Raises ValueError, TypeError or KeyError where a value has no sense."""
    return MedusaShape(
        target_hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        draft_vocab_size=config["vocab_size"],
        aux_layers=declared_layers_of_target(config),
        num_heads=config["num_heads"],
        num_layers=config["num_hidden_layers"],
        block_bias=config["medusa_fc_bias"],
        own_lm_head=not config["original_lm_head"],
    )


def config_problems(shape: MedusaShape, target: TargetFacts) -> list[str]:
    problems = target_mismatches(shape, target)
    for name in ("num_heads", "num_layers"):
        if getattr(shape, name) < 1:
            problems.append(f"{name} is {getattr(shape, name)}, not positive")
    return problems


def own_names(files: ArtifactFiles) -> dict[str, Tensor]:
    """Tensors under our names, which are vLLM's."""
    named: dict[str, Tensor] = {}
    for name, tensor in files.tensors.items():
        ours = name.removeprefix("medusa_heads.")
        if found := _AUTHORS.fullmatch(name):
            head, layer, linear, what = found.groups()
            ours = f"blocks.{head}.layers.{layer}.{what}" if linear else f"lm_heads.{head}.{what}"
        if ours in named:
            raise ConfigError(f"artifact {files.folder}: two of its tensors are {ours}")
        named[ours] = tensor
    return named


def _number(config: Mapping[str, Any], word: str, default: int) -> int:
    """As vLLM finds it: the last key with `num` and the word in its name."""
    given = [value for key, value in config.items() if "num" in key and word in key]
    value = given[-1] if given else default
    if not isinstance(value, int) or not 1 <= value <= MOST:
        raise ConfigError(f"the number of {word} is {value!r}, and not 1 to {MOST}")
    return value
