"""What a serving engine expects of an EAGLE-3 artifact: config keys, tensor names and shapes.

Read from vLLM 0.32 (its speculators loader and its EAGLE-3 models) and run against it; `eagle3`
also from SGLang's and TensorRT-LLM's `LlamaForCausalLMEagle3`.

Two formats have the same tensors. `speculators` keeps the layer's settings in
`transformer_layer_config`; `eagle3` has them at the top, and names the layer `midlayer`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from specpipe.schemas.records.checkpoint import DrafterShape

FormatName = Literal["speculators", "eagle3"]

MODEL_TENSORS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
VALIDATION_FILE = "validation.json"
CARD_FILE = "README.md"
ARTIFACT_FOLDER = "checkpoint"

LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
SWITCHES = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
"""Of EAGLE-3.1, by the names that the drafter's shape has too."""

USUAL_NUM_AUX = 3
"""Auxiliary layers that every engine takes."""

FIRST_VLLM = {"norm_before_fc": (0, 20), "fc_norm": (0, 25), "norm_output": (0, 25)}
"""The first vLLM that reads a switch in the `speculators` format (its pull requests 38111 and
46488): an older one computes without it, and says nothing."""

REQUIRED_KEYS = frozenset(
    {
        "architectures",
        "speculators_model_type",
        "speculators_version",
        "speculators_config",
        "transformer_layer_config",
        "draft_vocab_size",
        "target_hidden_size",
        *SWITCHES,
        LAYER_IDS,
        "tie_word_embeddings",
        "torch_dtype",
    }
)
"""Every key is written explicitly: engines disagree about the defaults."""

ALLOWED_KEYS = REQUIRED_KEYS | {"specpipe", "has_no_defaults_at_init", "embed_requires_grad"}

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

EAGLE3_KEYS = (
    (REQUIRED_KEYS - {"speculators_model_type", "speculators_version", "speculators_config"})
    - {"transformer_layer_config"}
    | REQUIRED_LAYER_KEYS
    | {"eagle_config", "rope_theta", "rope_scaling", "specpipe"}
)
"""Keys of an `eagle3` config, all of them required. Engines before transformers 5 read the rope
from `rope_theta` and `rope_scaling`, later ones from `rope_parameters`."""

NESTED_KEYS = frozenset({"use_aux_hidden_state", LAYER_IDS})
"""Keys of `eagle_config`, where SGLang looks: there a layer's output is named by the layer."""

LAYER_TYPES = ("llama", "qwen3")
"""The decoder layers that vLLM has as EAGLE-3."""

EMBEDDING = "embed_tokens.weight"
LM_HEAD = "lm_head.weight"


def needed_engine(shape: DrafterShape) -> str | None:
    """The engine that serves the drafter as it was trained, and why; None where any does."""
    more = [name for name in (*SWITCHES, "sliding_window") if getattr(shape, name)]
    more += ["the norms of qwen3 layers"] if shape.layer_type == "qwen3" else []
    more += [f"{shape.num_layers} layers"] if shape.num_layers > 1 else []
    more += [f"{shape.num_aux} auxiliary layers"] if shape.num_aux != USUAL_NUM_AUX else []
    if not more:
        return None
    first = max(FIRST_VLLM.get(name, (0, 0)) for name in more)
    version = f" {first[0]}.{first[1]} or newer" if any(first) else ""
    return (
        f"vLLM{version}, for {', '.join(more)}: what does not know them computes without, says"
        " nothing, and accepts fewer tokens"
    )


def layer_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where an artifact's config has the settings of its layers."""
    layer: Mapping[str, Any] = config.get("transformer_layer_config", config)
    return layer


def may_share_lm_head(shape: DrafterShape) -> bool:
    """Whether an engine can take the target's lm_head where the artifact has none."""
    return shape.draft_vocab_size == shape.vocab_size and not shape.projects_embedding


def expected_tensors(
    shape: DrafterShape, *, embedding: bool = False, lm_head: bool = True
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of every tensor that the artifact must hold; no other is allowed.

    Names are those of `speculators`. Dtypes are "float" (bfloat16, float16 or float32), "int64" or
    "bool". `embedding` and `lm_head` say whether the artifact has its own or leaves them to the
    target; a drafter of another width than the target's has an embedding of its own anyway.
    """
    H, target = shape.hidden_size, shape.target_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (H, shape.num_aux * target),
        "norm.weight": (H,),
    }
    if lm_head:
        shapes[LM_HEAD] = (shape.draft_vocab_size, H)
    for number in range(shape.num_layers):
        shapes |= _layer_tensors(shape, number)
    if shape.norm_before_fc:
        shapes["input_norm.weight"] = (shape.num_aux * target,)
    if shape.fc_norm:
        shapes |= {f"fc_norm.{i}.weight": (target,) for i in range(shape.num_aux)}
    if embedding or shape.projects_embedding:
        shapes[EMBEDDING] = (shape.vocab_size, H)
    tensors = {name: (value, "float") for name, value in shapes.items()}
    if shape.draft_vocab_size < shape.vocab_size:
        tensors["d2t"] = ((shape.draft_vocab_size,), "int64")
        tensors["t2d"] = ((shape.vocab_size,), "bool")
    return tensors


def _layer_tensors(shape: DrafterShape, number: int) -> dict[str, tuple[int, ...]]:
    """The first layer takes [embedding; hidden], further ones the hidden state alone."""
    H, I, E = shape.hidden_size, shape.intermediate_size, shape.head_dim  # noqa: E741
    queries, keys = shape.num_attention_heads * E, shape.num_key_value_heads * E
    width = 2 * H if number == 0 else H
    layer = f"layers.{number}"
    shapes: dict[str, tuple[int, ...]] = {
        f"{layer}.input_layernorm.weight": (H,),
        f"{layer}.post_attention_layernorm.weight": (H,),
        f"{layer}.self_attn.q_proj.weight": (queries, width),
        f"{layer}.self_attn.k_proj.weight": (keys, width),
        f"{layer}.self_attn.v_proj.weight": (keys, width),
        f"{layer}.self_attn.o_proj.weight": (H, queries),
        f"{layer}.mlp.gate_proj.weight": (I, H),
        f"{layer}.mlp.up_proj.weight": (I, H),
        f"{layer}.mlp.down_proj.weight": (H, I),
    }
    if number == 0:
        shapes[f"{layer}.hidden_norm.weight"] = (H,)
    if shape.layer_type == "qwen3":
        shapes |= {f"{layer}.self_attn.{name}_norm.weight": (E,) for name in "qk"}
    return shapes
