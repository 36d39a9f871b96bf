"""The drafter's shape from targets of several architectures."""

from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen3Config

from specpipe.schemas.drafters.eagle3 import Eagle3Settings
from specpipe.stages.drafters.eagle3.shape import drafter_shape

SETTINGS = Eagle3Settings()


def test_width_heads_and_rope_are_the_targets() -> None:
    target = Qwen3Config(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    shape = drafter_shape(target, SETTINGS, (1, 2, 3), 100, 50)
    assert (shape.hidden_size, shape.head_dim, shape.num_key_value_heads) == (64, 32, 2)
    assert shape.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert (shape.vocab_size, shape.draft_vocab_size, shape.num_aux) == (100, 50, 3)
    narrow = SETTINGS.model_copy(update={"intermediate_size": 10})
    assert drafter_shape(target, narrow, (1, 2, 3), 100, 50).intermediate_size == 10


def test_llama3_rope_is_kept_whole() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    target = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope)
    assert drafter_shape(target, SETTINGS, (1, 2, 3), 100, 50).rope_parameters == rope


def test_ropes_that_depend_on_the_length_are_replaced() -> None:
    factors = [1.0] * 8
    target = Phi3Config(
        hidden_size=64,
        num_attention_heads=4,
        pad_token_id=0,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": 64,
        },
    )
    shape = drafter_shape(target, SETTINGS, (1, 2, 3), 100, 50)
    assert shape.rope_parameters == {"rope_type": "default", "rope_theta": 1e4}


def test_a_rope_per_layer_type_lends_the_full_attentions() -> None:
    target = Gemma3TextConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=6)
    shape = drafter_shape(target, SETTINGS, (1, 2, 3), 100, 50)
    assert shape.rope_parameters["rope_theta"] == 1e6
