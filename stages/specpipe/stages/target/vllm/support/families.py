"""Architectures that vLLM runs, but gives no hidden states of: our plugin makes it give them.

A family is one of vLLM's model modules, whose decoder is a class with the list `layers` and a loop
over it. What leaves a layer is the residual stream itself, or a part of it beside `residual`, the
rest.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """How vLLM runs an architecture."""

    module: str
    """Below vllm.model_executor.models."""
    decoder: str
    """Class with the loop over the layers."""
    has_residual: bool = True
    """Whether the stream is `hidden_states + residual` between layers, not `hidden_states`."""


FAMILIES = {
    "CohereForCausalLM": Family("commandr", "CohereModel", has_residual=False),
    "Cohere2ForCausalLM": Family("commandr", "CohereModel", has_residual=False),
    "Exaone4ForCausalLM": Family("exaone4", "Exaone4Model", has_residual=False),
    "GemmaForCausalLM": Family("gemma", "GemmaModel"),
    "Gemma2ForCausalLM": Family("gemma2", "Gemma2Model"),
    "Gemma3ForCausalLM": Family("gemma3", "Gemma3Model"),
    "Glm4ForCausalLM": Family("glm4", "Glm4Model"),
    "Glm4MoeForCausalLM": Family("glm4_moe", "Glm4MoeModel"),
    "GraniteMoeForCausalLM": Family("granitemoe", "GraniteMoeModel", has_residual=False),
    "MixtralForCausalLM": Family("mixtral", "MixtralModel"),
    "NemotronForCausalLM": Family("nemotron", "NemotronModel"),
    "OlmoeForCausalLM": Family("olmoe", "OlmoeModel"),
    "Qwen2MoeForCausalLM": Family("qwen2_moe", "Qwen2MoeModel"),
    "StableLmForCausalLM": Family("stablelm", "StableLMEpochModel", has_residual=False),
}
"""By the architecture in a target's config."""

DUMPED = frozenset(
    {"Gemma2ForCausalLM", "Gemma3ForCausalLM", "MixtralForCausalLM", "OlmoeForCausalLM"}
)
"""Those that a dump runs in vLLM. The others stay with transformers, in which their dumps began."""

ENVIRONMENT = "SPECPIPE_VLLM_AUX_STATES"
"""Asks the plugin for it: 1, or some of the architectures, with commas between."""
