"""Names and sizes of the tensors that artifacts of several architectures have."""

from specpipe.schemas.drafters.base import DrafterShape, LayerShape

Sizes = dict[str, tuple[int, ...]]


def decoder_layer_tensors(shape: LayerShape, number: int, width: int) -> Sizes:
    """A decoder layer whose queries, keys and values are projected from `width` numbers."""
    H, I, E = shape.hidden_size, shape.intermediate_size, shape.head_dim  # noqa: E741
    queries, keys = shape.num_attention_heads * E, shape.num_key_value_heads * E
    layer = f"layers.{number}"
    sizes: Sizes = {
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
    if shape.layer_type == "qwen3":
        sizes |= {f"{layer}.self_attn.{which}_norm.weight": (E,) for which in "qk"}
    return sizes


def map_tensors(shape: DrafterShape) -> dict[str, tuple[tuple[int, ...], str]]:
    """The vocabulary map, where there is one: name -> (size, dtype)."""
    if shape.draft_vocab_size >= shape.vocab_size:
        return {}
    return {"d2t": ((shape.draft_vocab_size,), "int64"), "t2d": ((shape.vocab_size,), "bool")}
