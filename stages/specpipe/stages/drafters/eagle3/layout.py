"""What a serving engine expects of an EAGLE-3 artifact: config keys, tensor names and shapes.

Read from vLLM 0.32 (its speculators loader and its EAGLE-3 models) and run against it; `eagle3`
also from SGLang's and TensorRT-LLM's `LlamaForCausalLMEagle3`.

Two formats have the same tensors. `speculators` keeps the layer's settings in
`transformer_layer_config`; `eagle3` has them at the top, and names the layer `midlayer`.
"""

from specpipe.schemas.drafters.eagle3 import SWITCHES, Eagle3Shape
from specpipe.schemas.records.artifact import EMBEDDING, LM_HEAD
from specpipe.stages.drafters.parts.artifact.layer_config import LAYER_IDS
from specpipe.stages.drafters.parts.artifact.layer_tensors import decoder_layer_tensors, map_tensors
from specpipe.stages.drafters.parts.artifact.own_key import OWN
from specpipe.stages.drafters.parts.artifact.speculators_config import REQUIRED_LAYER_KEYS

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

ALLOWED_KEYS = REQUIRED_KEYS | {OWN, "has_no_defaults_at_init", "embed_requires_grad"}

EAGLE3_KEYS = (
    (REQUIRED_KEYS - {"speculators_model_type", "speculators_version", "speculators_config"})
    - {"transformer_layer_config"}
    | REQUIRED_LAYER_KEYS
    | {"eagle_config", "rope_theta", "rope_scaling", OWN}
)
"""Keys of an `eagle3` config, all of them required. Engines before transformers 5 read the rope
from `rope_theta` and `rope_scaling`, later ones from `rope_parameters`."""

NESTED_KEYS = frozenset({"use_aux_hidden_state", LAYER_IDS})
"""Keys of `eagle_config`, where SGLang looks: there a layer's output is named by the layer."""


READS_LAYERS = (0, 11, 1)
"""The first vLLM that reads the auxiliary layers from the artifact (its pull request 25961)."""

PLAIN = (
    f"vLLM {'.'.join(map(str, READS_LAYERS))} or newer; in the format eagle3 also SGLang, and"
    " TensorRT-LLM where its eagle3_layers_to_capture names the layers. Older vLLM takes layers 2,"
    " n//2 and n-3 of n, whatever the artifact says"
)
"""Engines of a drafter that has nothing beyond the paper's EAGLE-3."""


def needed_engine(shape: Eagle3Shape) -> str:
    """The engine that serves the drafter as it was trained, and why."""
    more = [name for name in (*SWITCHES, "sliding_window") if getattr(shape, name)]
    more += ["the norms of qwen3 layers"] if shape.layer_type == "qwen3" else []
    more += [f"{shape.num_layers} layers"] if shape.num_layers > 1 else []
    more += [f"{shape.num_aux} auxiliary layers"] if shape.num_aux != USUAL_NUM_AUX else []
    if not more:
        return PLAIN
    first = max(FIRST_VLLM.get(name, READS_LAYERS) for name in more)
    return (
        f"vLLM {'.'.join(map(str, first))} or newer, for {', '.join(more)}: what does not know"
        " them computes without, says nothing, and accepts fewer tokens"
    )


def may_share_lm_head(shape: Eagle3Shape) -> bool:
    """Whether an engine can take the target's lm_head where the artifact has none."""
    return shape.draft_vocab_size == shape.vocab_size and not shape.projects_embedding


def expected_tensors(
    shape: Eagle3Shape, *, embedding: bool = False, lm_head: bool = True
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
        shapes |= decoder_layer_tensors(shape, number, width=2 * H if number == 0 else H)
    shapes["layers.0.hidden_norm.weight"] = (H,)
    if shape.norm_before_fc:
        shapes["input_norm.weight"] = (shape.num_aux * target,)
    if shape.fc_norm:
        shapes |= {f"fc_norm.{i}.weight": (target,) for i in range(shape.num_aux)}
    if embedding or shape.projects_embedding:
        shapes[EMBEDDING] = (shape.vocab_size, H)
    tensors = {name: (value, "float") for name, value in shapes.items()}
    return tensors | map_tensors(shape)
