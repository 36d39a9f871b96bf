"""What vLLM expects of a P-EAGLE artifact: config keys, tensor names and shapes.

Read from vLLM 0.32 (its speculators loader and its EAGLE-3 models, which serve P-EAGLE) and run
against it. Two formats have the same tensors: `speculators`, and `peagle`, a flat EAGLE-3 config
that names the mask token `ptd_token_id`.
"""

from specpipe.schemas.drafters.peagle import PeagleShape
from specpipe.schemas.records.artifact import EMBEDDING, LM_HEAD
from specpipe.stages.drafters.parts.artifact.layer_config import LAYER_IDS
from specpipe.stages.drafters.parts.artifact.layer_tensors import decoder_layer_tensors, map_tensors
from specpipe.stages.drafters.parts.artifact.own_key import OWN
from specpipe.stages.drafters.parts.artifact.speculators_config import REQUIRED_LAYER_KEYS

MASK_HIDDEN = "mask_hidden"
SWITCHES = ("norm_before_residual", "norm_before_fc")

_OF_DRAFTER = frozenset(
    {
        "architectures",
        "draft_vocab_size",
        "target_hidden_size",
        *SWITCHES,
        LAYER_IDS,
        "tie_word_embeddings",
        "torch_dtype",
    }
)
SPECULATORS_KEYS = _OF_DRAFTER | {
    "speculators_model_type",
    "speculators_version",
    "speculators_config",
    "transformer_layer_config",
    "mask_token_id",
}
"""Every key is written explicitly: engines disagree about the defaults."""

ALLOWED_SPECULATORS_KEYS = SPECULATORS_KEYS | {
    OWN,
    "has_no_defaults_at_init",
    "embed_requires_grad",
    "fc_norm",
    "norm_output",
}

FLAT_KEYS = _OF_DRAFTER | REQUIRED_LAYER_KEYS | {"ptd_token_id", "rope_theta", "rope_scaling", OWN}
"""Keys of a flat config, all of them required."""


def needed_engine(shape: PeagleShape) -> str:
    """The engine that serves the drafter as it was trained, and why."""
    version = "0.20" if shape.norm_before_fc else "0.16"
    return (
        f"vLLM {version} or newer, with parallel_drafting: without it the drafter is loaded as an"
        " EAGLE-3 one, with a warning, and all its drafts but the first are poor"
    )


def may_share_lm_head(shape: PeagleShape) -> bool:
    """Whether an engine can take the target's lm_head where the artifact has none."""
    return shape.draft_vocab_size == shape.vocab_size


def expected_tensors(
    shape: PeagleShape, *, embedding: bool = True, lm_head: bool = True
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of every tensor that the artifact must hold; no other is allowed.

    Names are those of `speculators`. Dtypes are "float" (bfloat16, float16 or float32), "int64" or
    "bool". Without an embedding the mask token's row is the target's, as it was not trained.
    """
    H, features = shape.hidden_size, shape.num_aux * shape.target_hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (H, features),
        "norm.weight": (H,),
        MASK_HIDDEN: (1, 1, features),
    }
    if lm_head:
        shapes[LM_HEAD] = (shape.draft_vocab_size, H)
    for number in range(shape.num_layers):
        shapes |= decoder_layer_tensors(shape, number, width=2 * H if number == 0 else H)
    shapes["layers.0.hidden_norm.weight"] = (H,)
    if shape.norm_before_fc:
        shapes["input_norm.weight"] = (features,)
    if embedding:
        shapes[EMBEDDING] = (shape.vocab_size, H)
    tensors = {name: (value, "float") for name, value in shapes.items()}
    return tensors | map_tensors(shape)
