"""The `eagle3` format: one `midlayer` and a flat config, as SGLang, TensorRT-LLM and vLLM read it.

`LlamaForCausalLMEagle3` is what all of them load. SGLang and TensorRT-LLM pass over switches and
tensors of EAGLE-3.1, and over the norms of queries and keys, without a word: a drafter that has
any is given vLLM's own name of the architecture, which they refuse.
"""

from collections.abc import Mapping
from typing import Any

from specpipe.schemas.drafters.eagle3 import SWITCHES, Eagle3Shape
from specpipe.schemas.records.artifact import CONFIG_FILE
from specpipe.stages.drafters.artifact_format import (
    Drafter,
    TargetFacts,
    layer_settings,
    mismatches,
    missing_and_unknown,
)
from specpipe.stages.drafters.eagle3.layout import (
    EAGLE3_KEYS,
    NESTED_KEYS,
    USUAL_NUM_AUX,
)
from specpipe.stages.drafters.parts.artifact.layer_config import LAYER_IDS
from specpipe.stages.drafters.parts.artifact.own_key import OwnKeyFormat, own_settings
from specpipe.stages.drafters.parts.artifact.speculators_config import is_speculators
from specpipe.stages.drafters.parts.eagle.config import drafter_settings
from specpipe.stages.drafters.parts.rope import rope_scaling

EVERY_ENGINE = "LlamaForCausalLMEagle3"
ONLY_VLLM = {"llama": "Eagle3LlamaForCausalLM", "qwen3": "Eagle3Qwen3ForCausalLM"}

LAYER, MIDLAYER = "layers.0.", "midlayer."


class FlatFormat(OwnKeyFormat[Eagle3Shape]):
    name = "eagle3"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return not is_speculators(config)

    def inexpressible(self, shape: Eagle3Shape) -> list[str]:
        problems = []
        if shape.num_layers != 1:
            problems.append(f"{shape.num_layers} layers (it has one, midlayer)")
        if shape.sliding_window is not None:
            problems.append(f"a sliding window of {shape.sliding_window} (no engine reads it here)")
        return problems

    def config(self, drafter: Drafter[Eagle3Shape]) -> dict[str, Any]:
        shape, rope = drafter.shape, drafter.shape.rope_parameters
        return {
            "architectures": [architecture(shape)],
            **layer_settings(shape),
            "rope_theta": rope["rope_theta"],
            "rope_scaling": rope_scaling(rope),
            **drafter_settings(drafter, SWITCHES),
            # SGLang takes the target's lm_head where no size is given, and only there.
            "draft_vocab_size": shape.draft_vocab_size if drafter.has_lm_head else None,
            "eagle_config": {
                "use_aux_hidden_state": True,
                LAYER_IDS: [layer - 1 for layer in shape.aux_layers],
            },
            **own_settings(drafter),
        }

    def stored_name(self, name: str) -> str:
        return name.replace(LAYER, MIDLAYER, 1) if name.startswith(LAYER) else name

    def key_problems(self, config: Mapping[str, Any]) -> list[str]:
        nested = config.get("eagle_config", {})
        if not isinstance(nested, dict):
            return [f"{CONFIG_FILE}: eagle_config is not an object"]
        return [
            *missing_and_unknown(CONFIG_FILE, config, EAGLE3_KEYS, EAGLE3_KEYS),
            *missing_and_unknown("eagle_config", nested, NESTED_KEYS, NESTED_KEYS),
        ]

    def problems(
        self,
        config: Mapping[str, Any],
        shape: Eagle3Shape,
        target: TargetFacts,
        has_lm_head: bool,
    ) -> list[str]:
        nested = config["eagle_config"]
        expected = [
            ("architectures", config["architectures"], [architecture(shape)]),
            (
                f"eagle_config's {LAYER_IDS} (SGLang's numbering, one less)",
                nested[LAYER_IDS],
                [layer - 1 for layer in shape.aux_layers],
            ),
            ("use_aux_hidden_state", nested["use_aux_hidden_state"], True),
            ("rope_theta", config["rope_theta"], shape.rope_parameters.get("rope_theta")),
            ("rope_scaling", config["rope_scaling"], rope_scaling(shape.rope_parameters)),
        ]
        problems = mismatches(expected)
        problems += [f"the format cannot hold {what}" for what in self.inexpressible(shape)]
        if has_lm_head != (config["draft_vocab_size"] is not None):
            problems.append(
                f"draft_vocab_size is {config['draft_vocab_size']!r}, but a lm_head is"
                f" {'there' if has_lm_head else 'missing'}: null says that the target's is shared"
            )
        return problems + self.target_problems(config, target)


def architecture(shape: Eagle3Shape) -> str:
    """The class that loads this drafter, as each engine registers it."""
    plain = (
        shape.layer_type == "llama"
        and shape.num_aux == USUAL_NUM_AUX
        and not any(getattr(shape, switch) for switch in SWITCHES)
    )
    return EVERY_ENGINE if plain else ONLY_VLLM.get(shape.layer_type, shape.layer_type)
