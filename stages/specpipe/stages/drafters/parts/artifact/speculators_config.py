"""Keys of every config of the `speculators` library, which vLLM loads directly."""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.base import LayerShape
from specpipe.stages.drafters.artifact_format import Drafter, Stated, TargetFacts, stated_drafter

SPECULATORS_VERSION = "0.9.0"
"""Version of the `speculators` library whose config layout this is."""


REQUIRED_LAYER_KEYS = frozenset(
    {
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "rms_norm_eps",
        "rope_parameters",
        "max_position_embeddings",
        "vocab_size",
        "num_aux_hidden_states",
        "attention_bias",
        "mlp_bias",
        "tie_word_embeddings",
    }
)
"""Keys of `transformer_layer_config`. vLLM's drafter looks for `num_aux_hidden_states` only here,
and assumes 3."""

ALLOWED_LAYER_KEYS = REQUIRED_LAYER_KEYS | {"layer_types", "sliding_window"}
"""Both of the further two, or neither: without a window vLLM looks for neither."""


def is_speculators(config: Mapping[str, Any]) -> bool:
    return "speculators_model_type" in config or "transformer_layer_config" in config


def speculators_settings(kind: str, drafter: Drafter[Any]) -> dict[str, Any]:
    """Its keys but for the drafter's own; `kind` is their name of the architecture."""
    return {
        "speculators_model_type": kind,
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": kind,
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
    }


def stated(config: Mapping[str, Any]) -> Stated | None:
    """Name and architecture of the target, and number of draft tokens; None where not said."""
    try:
        own = config["speculators_config"]
        (architecture,) = own["verifier"]["architectures"]
        tokens = own["proposal_methods"][0]["speculative_tokens"]
        return stated_drafter(own["verifier"]["name_or_path"], architecture, tokens)
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def speculators_problems(config: Mapping[str, Any], kind: str, target: TargetFacts) -> list[str]:
    """What of these keys is wrong for a drafter of this kind and target."""
    problems = []
    named = config["speculators_model_type"]
    if named != kind:
        problems.append(f"speculators_model_type is {named!r}, but must be {kind!r}")
    try:
        declared = stated(config)
        if declared is None:
            return [
                *problems,
                "speculators_config does not say the verifier and, in the proposal method, a"
                " positive number of speculative_tokens",
            ]
        name, architecture, _ = declared
        if not name:
            problems.append("speculators_config.verifier.name_or_path is empty")
        if architecture != target.architecture:
            problems.append(
                f"the verifier's architectures are not [{target.architecture!r}], but"
                f" [{architecture!r}]"
            )
        if config["speculators_config"]["algorithm"] != named:
            algorithm = config["speculators_config"]["algorithm"]
            problems.append(f"algorithm {algorithm!r} is not the drafter's")
    except KeyError as error:
        problems.append(f"speculators_config lacks {error}")
    return problems


def window_settings(shape: LayerShape) -> dict[str, Any]:
    """vLLM takes a layer's window from these two keys, and without them looks back all the way."""
    if shape.sliding_window is None:
        return {}
    return {
        "layer_types": ["sliding_attention"] * shape.num_layers,
        "sliding_window": shape.sliding_window,
    }
