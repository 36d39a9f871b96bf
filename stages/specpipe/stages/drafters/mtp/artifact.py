"""An MTP artifact on disk: the target's config.json and the tensors of one MTP layer."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.mtp import MtpShape
from specpipe.schemas.drafters.mtp_families import family_of, num_mtp_layers, our_name
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact import Artifact, ArtifactFiles, OfTarget
from specpipe.stages.drafters.artifact_format import Drafter, TargetFacts
from specpipe.stages.drafters.mtp.shape import shape_of_config
from specpipe.stages.drafters.parts.artifact.layer_config import own_names
from specpipe.stages.drafters.parts.artifact.own_key import OWN, OwnKeyFormat, own_settings
from specpipe.stages.untrusted.foreign import foreign_call


def recognises(files: ArtifactFiles) -> bool:
    """Whether it has a target's config, and tensors of its MTP layer."""
    family = family_of(files.config)
    if family is None:
        return False
    with foreign_call(f"artifact {files.folder}: {CONFIG_FILE}", ConfigError):
        shape = shape_of_config(files.config)
    return any(our_name(family, name, shape.num_target_layers) for name in files.tensors)


def read(files: ArtifactFiles, target: OfTarget | None) -> Artifact:
    """Raises ConfigError where it is none for this target."""
    with foreign_call(f"artifact {files.folder}: {CONFIG_FILE}", ConfigError):
        shape = shape_of_config(files.config)
    sizes = shape.vocab_size, shape.target_hidden_size
    if target and sizes != (target.vocab_size, target.hidden_size):
        raise ConfigError(
            f"artifact {files.folder} is for a target with a vocabulary of {sizes[0]} and"
            f" {sizes[1]} wide states, not for this one with {target.vocab_size} and"
            f" {target.hidden_size}"
        )
    tensors = own_names(files.folder, files.tensors)
    return Artifact(files.folder, files.config, shape, tensors, shape.aux_layers)


class BesideTarget(OwnKeyFormat[MtpShape]):
    """A folder that vLLM loads beside an untouched target, by method `mtp`."""

    name = "mtp"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return family_of(config) is not None

    def config(self, drafter: Drafter[MtpShape]) -> dict[str, Any]:
        return {
            **drafter.shape.target_config,
            **own_settings(drafter),
        }

    def stored_name(self, name: str) -> str:
        return name if name.startswith("mtp.") else f"model.{name}"

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        if family_of(config) is None:
            return [f"{CONFIG_FILE} is not that of a target that has an MTP layer"]
        return [] if OWN in config else [f"{CONFIG_FILE}: key {OWN!r} is missing"]

    def problems(
        self,
        config: Mapping[str, Any],
        shape: MtpShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        problems = []
        count = num_mtp_layers(shape.of, config)
        if count != 1:
            problems.append(
                f"{shape.of.count_key} is {count}, but must be 1: with more, one of vLLM's model"
                " runners drafts each step with a layer of its own, and the other does not"
            )
        return problems + self.target_problems(config, target)


def config_problems(shape: MtpShape, target: TargetFacts) -> list[str]:
    """The config against the target's."""
    named = shape.target_config.get("architectures") or [None]
    expected = [
        ("architectures", named[0], target.architecture),
        ("hidden_size", shape.target_hidden_size, target.hidden_size),
        ("vocab_size", shape.vocab_size, target.vocab_size),
        ("num_hidden_layers", shape.num_target_layers, target.num_layers),
    ]
    return [
        f"{name} is {value!r}, but the target's is {right!r}"
        for name, value, right in expected
        if value != right
    ]
