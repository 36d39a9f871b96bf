"""The `speculators` format of an EAGLE-3 drafter, which vLLM loads directly."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.records.artifact import (
    ALLOWED_KEYS,
    ALLOWED_LAYER_KEYS,
    CONFIG_FILE,
    REQUIRED_KEYS,
    REQUIRED_LAYER_KEYS,
)
from specpipe.schemas.records.checkpoint import DrafterShape
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    Format,
    TargetFacts,
    drafter_settings,
    layer_settings,
    missing_and_unknown,
)

SPECULATORS_VERSION = "0.9.0"
"""Version of the `speculators` library whose config layout this is."""


class Speculators(Format):
    name = "speculators"

    def inexpressible(self, shape: DrafterShape) -> list[str]:
        return []

    def config(self, drafter: Drafter) -> dict[str, Any]:
        shape = drafter.shape
        return {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": shape.architecture,
            "speculators_version": SPECULATORS_VERSION,
            "speculators_config": {
                "algorithm": shape.architecture,
                "default_proposal_method": "greedy",
                "proposal_methods": [
                    {
                        "proposal_type": "greedy",
                        "speculative_tokens": drafter.speculative_tokens,
                        "verifier_accept_k": 1,
                        "accept_tolerance": 0.0,
                    }
                ],
                "verifier": {
                    "name_or_path": drafter.target,
                    "architectures": [drafter.target_architecture],
                },
            },
            "transformer_layer_config": layer_settings(shape) | _window(shape),
            **drafter_settings(drafter),
        }

    def stored_name(self, name: str) -> str:
        return name

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        layer = config.get("transformer_layer_config", {})
        if not isinstance(layer, dict):
            return [f"{CONFIG_FILE}: transformer_layer_config is not an object"]
        return [
            *missing_and_unknown(CONFIG_FILE, config, REQUIRED_KEYS, ALLOWED_KEYS),
            *missing_and_unknown(
                "transformer_layer_config", layer, REQUIRED_LAYER_KEYS, ALLOWED_LAYER_KEYS
            ),
        ]

    def problems(
        self,
        config: Mapping[str, Any],
        shape: DrafterShape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        problems = []
        layer, kind = config["transformer_layer_config"], config["speculators_model_type"]
        if kind != "eagle3":
            problems.append(f"speculators_model_type is {kind!r}, but must be 'eagle3'")
        windows = ["sliding_attention"] * shape.num_layers if shape.sliding_window else None
        if layer.get("layer_types") != windows:
            problems.append(
                f"layer_types {layer.get('layer_types')!r} must be {windows!r} for a sliding_window"
                f" of {shape.sliding_window!r}"
            )
        try:
            said = self.drafter(config)
            if said is None:
                return [*problems, "speculators_config lacks the verifier or the proposal method"]
            name, architecture, tokens = said
            if not (isinstance(tokens, int) and tokens > 0):
                problems.append("speculative_tokens must be a positive number")
            if not name:
                problems.append("speculators_config.verifier.name_or_path is empty")
            if architecture != target.architecture:
                problems.append(
                    f"the verifier's architectures are not [{target.architecture!r}], but"
                    f" [{architecture!r}]"
                )
            if config["speculators_config"]["algorithm"] != kind:
                algorithm = config["speculators_config"]["algorithm"]
                problems.append(f"algorithm {algorithm!r} is not the drafter's")
        except KeyError as error:
            problems.append(f"speculators_config lacks {error}")
        return problems

    def drafter(self, config: Mapping[str, Any]) -> tuple[str, str, int] | None:
        try:
            stated = config["speculators_config"]
            (architecture,) = stated["verifier"]["architectures"]
            tokens = stated["proposal_methods"][0]["speculative_tokens"]
            return stated["verifier"]["name_or_path"], architecture, tokens
        except (KeyError, IndexError, TypeError, ValueError):
            return None


def _window(shape: DrafterShape) -> dict[str, Any]:
    """vLLM takes a layer's window from these two keys, and without them looks back all the way."""
    if shape.sliding_window is None:
        return {}
    return {
        "layer_types": ["sliding_attention"] * shape.num_layers,
        "sliding_window": shape.sliding_window,
    }
