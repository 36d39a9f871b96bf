"""`specpipe convert`: nothing is lost on the way, and nothing is made up."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from specpipe.schemas.drafters.eagle3 import Eagle3Shape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import ConvertConfig
from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.eagle3.architecture import ARCHITECTURE
from specpipe.stages.export.convert import run
from tests.drafters.eagle3.test_proposal import LLAMA3_ROPE, make_shape
from tests.validate.artifacts import Config, Tensors, edit_config, edit_tensors, random_tensors

FORMATS = ARCHITECTURE.formats

FILES = ("config.json", "model.safetensors")
FORMAT_NAMES = ("speculators", "eagle3")
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 500000.0}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WRITERS = ("specforge", "modelopt", "model prefix")


@st.composite
def shapes(draw: st.DrawFn) -> Eagle3Shape:
    """Every kind of drafter that both formats hold."""
    norms = draw(st.sampled_from([{}, {"norm_before_fc": True}, {"fc_norm": True}]))
    return make_shape(
        num_aux=draw(st.integers(1, 4)),
        layer_type=draw(st.sampled_from(["llama", "qwen3"])),
        hidden_size=draw(st.sampled_from([24, 16])),
        num_key_value_heads=draw(st.sampled_from([1, 2, 4])),
        draft_vocab_size=draw(st.sampled_from([1, 30, 40])),
        rope_parameters=draw(st.sampled_from([DEFAULT_ROPE, LLAMA3_ROPE])),
        norm_before_residual=draw(st.booleans()),
        norm_output=draw(st.booleans()),
        **norms,
    )


def written(folder: Path, format_name: Any, shape: Eagle3Shape, tensors: Tensors) -> Path:
    folder.mkdir(parents=True)
    drafter = Drafter(
        shape,
        "some/target",
        "LlamaForCausalLM",
        5,
        dtype=str(tensors["fc.weight"].dtype).removeprefix("torch."),
        has_lm_head="lm_head.weight" in tensors,
    )
    format = FORMATS[format_name]
    format.write(folder, format.config(drafter), tensors)
    return folder


def converted(source: Path, out: Path, format_name: Any, **more: Any) -> Path:
    run(ConvertConfig(source=str(source), out=str(out), format=format_name, **more))
    return out


@settings(max_examples=40, deadline=None)
@given(
    shape=shapes(),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from(DTYPES),
    embedding=st.booleans(),
    lm_head=st.booleans(),
    there=st.permutations(FORMAT_NAMES),
)
def test_there_and_back_is_the_same_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory,
    shape: Eagle3Shape,
    seed: int,
    dtype: torch.dtype,
    embedding: bool,
    lm_head: bool,
    there: list[str],
) -> None:
    root = tmp_path_factory.mktemp("convert")
    tensors = random_tensors(shape, seed, dtype, embedding=embedding, lm_head=lm_head)
    first = written(root / "first", there[0], shape, tensors)
    other = converted(first, root / "other", there[1])
    back = converted(other, root / "back", there[0])
    for name in FILES:
        assert (back / name).read_bytes() == (first / name).read_bytes()
    found = load_file(other / "model.safetensors")
    assert set(found) == {FORMATS[there[1]].stored_name(name) for name in tensors}
    for name, tensor in tensors.items():
        assert torch.equal(found[FORMATS[there[1]].stored_name(name)], tensor)


def others_config(shape: Eagle3Shape) -> Config:
    """config.json as SpecForge, ModelOpt and EAGLE's code write it."""
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    more = ("rms_norm_eps", "max_position_embeddings", "vocab_size", "draft_vocab_size")
    rope = dict(shape.rope_parameters)
    theta = rope.pop("rope_theta")
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "bos_token_id": 1,
        "head_dim": shape.head_dim,
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in shape.aux_layers]
        },
        **{key: getattr(shape, key) for key in (*keys, *more)},
    }


def others_names(tensors: Tensors, writer: str) -> Tensors:
    if writer == "specforge":
        return {name.replace("layers.0.", "midlayer."): t for name, t in tensors.items()}
    if writer == "model prefix":
        return {f"model.{name}" if name[0] == "l" else name: t for name, t in tensors.items()}
    return dict(tensors)


@settings(max_examples=20, deadline=None)
@given(
    draft_size=st.sampled_from([7, 40]),
    rope=st.sampled_from([DEFAULT_ROPE, LLAMA3_ROPE]),
    writer=st.sampled_from(WRITERS),
    dtype=st.sampled_from(DTYPES),
    map_dtype=st.sampled_from([torch.int32, torch.int64]),
    embedding=st.booleans(),
    out_format=st.sampled_from(FORMAT_NAMES),
)
def test_what_other_programs_write(
    tmp_path_factory: pytest.TempPathFactory,
    target: Path,
    draft_size: int,
    rope: dict[str, Any],
    writer: str,
    dtype: torch.dtype,
    map_dtype: torch.dtype,
    embedding: bool,
    out_format: str,
) -> None:
    """Every weight comes through bit by bit, and the config says what theirs said."""
    root = tmp_path_factory.mktemp("others")
    shape = make_shape(
        draft_vocab_size=draft_size,
        rope_parameters=rope,
        vocab_size=96,
        hidden_size=32,
        target_hidden_size=32,
    )
    tensors = random_tensors(shape, dtype=dtype, embedding=embedding)
    (root / "source").mkdir()
    stored = others_names(tensors, writer) | {
        "midlayer.self_attn.rotary_emb.inv_freq": torch.ones(4)
    }
    if "d2t" in stored:
        stored["d2t"] = stored["d2t"].to(map_dtype)
    save_file(stored, root / "source" / "model.safetensors")
    (root / "source" / "config.json").write_text(json.dumps(others_config(shape)))
    out = converted(root / "source", root / "out", out_format, target=str(target))
    again = converted(out, root / "ours", "speculators")
    found = load_file(again / "model.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    config = json.loads((again / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == list(shape.aux_layers)
    assert config["transformer_layer_config"]["rope_parameters"] == rope
    assert config["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]


def test_rope_keys_that_training_passed_over_are_left_out_and_named(tmp_path: Path) -> None:
    shape = make_shape()
    folder = written(tmp_path / "a", "eagle3", shape, random_tensors(shape))
    sections = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    edit_config(folder, lambda config: config["rope_parameters"].update(sections))
    said: list[str] = []
    config = ConvertConfig(source=str(folder), out=str(tmp_path / "b"), format="eagle3")
    run(config, progress=said.append)
    assert "mrope_interleaved, mrope_section are left out" in said[0]
    stored = json.loads((tmp_path / "b" / "config.json").read_text())
    assert stored["rope_parameters"] == shape.rope_parameters


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor of 0.25, but .* whole heads"),
        ({"rope_type": "axial"}, "'axial' is none of default"),
    ],
)
def test_a_rope_that_no_drafter_has_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    shape = make_shape()
    folder = written(tmp_path / "a", "eagle3", shape, random_tensors(shape))
    edit_config(folder, lambda config: config["rope_parameters"].update(change))
    with pytest.raises(ConfigError, match=says):
        converted(folder, tmp_path / "b", "eagle3")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is read of a target: its config."""
    folder = tmp_path_factory.mktemp("target")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "vocab_size": 96,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("rope", [DEFAULT_ROPE, LLAMA3_ROPE], ids=["default", "llama3"])
def test_transformers_reads_the_rope_that_was_trained(tmp_path: Path, rope: dict[str, Any]) -> None:
    """By whichever of its keys."""
    shape = make_shape(rope_parameters=rope)
    folder = written(tmp_path / "a", "eagle3", shape, random_tensors(shape))
    assert AutoConfig.from_pretrained(folder).rope_parameters == rope
    edit_config(folder, lambda config: config.pop("rope_parameters"))
    assert AutoConfig.from_pretrained(folder).rope_parameters == rope


@pytest.mark.parametrize(
    ("changes", "architecture"),
    [
        ({}, "LlamaForCausalLMEagle3"),
        ({"layer_type": "qwen3"}, "Eagle3Qwen3ForCausalLM"),
        ({"fc_norm": True}, "Eagle3LlamaForCausalLM"),
        ({"norm_output": True}, "Eagle3LlamaForCausalLM"),
        ({"norm_before_residual": True}, "Eagle3LlamaForCausalLM"),
        ({"norm_before_fc": True, "layer_type": "qwen3"}, "Eagle3Qwen3ForCausalLM"),
        ({"num_aux": 4}, "Eagle3LlamaForCausalLM"),
    ],
    ids=str,
)
def test_engines_that_would_pass_over_a_switch_do_not_know_the_architecture(
    changes: dict[str, Any], architecture: str
) -> None:
    config = FORMATS["eagle3"].config(Drafter(make_shape(**changes), "t", "X", 3))
    assert config["architectures"] == [architecture]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_layers": 2}, "2 layers"), ({"sliding_window": 5}, "a sliding window of 5")],
)
def test_what_eagle3_cannot_hold_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    shape = make_shape(**changes)
    source = written(tmp_path / "source", "speculators", shape, random_tensors(shape))
    with pytest.raises(ConfigError, match=f"format eagle3 cannot hold .*: {words}"):
        converted(source, tmp_path / "out", "eagle3")
    assert not (tmp_path / "out").exists()


def test_a_finished_conversion_does_nothing_and_overwrites_nothing(tmp_path: Path) -> None:
    shape = make_shape()
    source = written(tmp_path / "source", "speculators", shape, random_tensors(shape))
    config = ConvertConfig(source=str(source), out=str(tmp_path / "out"), format="eagle3")
    assert not run(config).did_nothing
    assert run(config).did_nothing
    other = config.model_copy(update={"speculative_tokens": 2})
    with pytest.raises(ConfigError, match="already holds something else"):
        run(other)
    with pytest.raises(ConfigError, match="already holds something else"):
        run(config.model_copy(update={"out": str(source)}))
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_layers_that_are_not_named_are_the_default_of_the_target(
    tmp_path: Path, target: Path
) -> None:
    shape = make_shape(vocab_size=96, hidden_size=32, target_hidden_size=32)
    source = written(tmp_path / "source", "eagle3", shape, random_tensors(shape))
    (source / "config.json").write_text(json.dumps(others_config(shape) | {"eagle_config": None}))
    notes: list[str] = []
    config = ConvertConfig(
        source=str(source), out=str(tmp_path / "out"), format="eagle3", target=str(target)
    )
    result = run(config, progress=notes.append)
    assert result.layers_assumed
    assert result.aux_layers == (2, 4, 5)
    assert "EAGLE-3's default is taken" in notes[0]
    with pytest.raises(ConfigError, match=r"names no .*give --target"):
        run(config.model_copy(update={"target": None}))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t, c: t.pop("layers.0.mlp.up_proj.weight"), "up_proj.weight is missing"),
        (lambda t, c: t.update(extra=torch.zeros(1)), "tensor extra does not belong"),
        (lambda t, c: t.pop("lm_head.weight"), "lm_head.weight is missing"),
        (lambda t, c: t["norm.weight"].fill_(torch.nan), "norm.weight holds NaN"),
        (lambda t, c: t.update({"norm.weight": torch.zeros(23)}), r"must be float \[24\]"),
        (lambda t, c: t.pop("d2t"), "no d2t that says which tokens"),
        (lambda t, c: t["d2t"].add_(torch.arange(30)), r"offsets \(target id minus draft id\)"),
        (
            lambda t, c: t.update({"midlayer.hidden_norm.weight": torch.zeros(24)}),
            "two of its tensors are layers.0.hidden_norm.weight",
        ),
        (lambda t, c: c["transformer_layer_config"].update(attention_bias=True), "has biases"),
        (lambda t, c: c.pop("norm_before_residual"), "does not say norm_before_residual"),
        (lambda t, c: c.update(speculators_model_type="xpress"), "is no drafter that is known"),
        (lambda t, c: c.pop("speculators_config"), "does not say its target; give --target"),
        (
            lambda t, c: c.update(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}),
            "disagrees with that of eagle_config",
        ),
    ],
)
def test_what_is_missing_or_unknown_is_an_error(tmp_path: Path, edit: Any, words: str) -> None:
    shape = make_shape()
    source = written(tmp_path / "source", "speculators", shape, random_tensors(shape))
    config = json.loads((source / "config.json").read_text())

    def both(tensors: Tensors) -> None:
        edit(tensors, config)

    edit_tensors(source, both)
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=words):
        converted(source, tmp_path / "out", "eagle3")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1.0, negative"),
        ({"rope_parameters": DEFAULT_ROPE | {"rope_theta": 0}}, "rope_theta 0 must be a positive"),
        ({"rope_parameters": DEFAULT_ROPE | {"rope_theta": -5}}, "rope_theta -5 must be"),
        ({"sliding_window": -5}, "sliding_window is -5, not positive"),
        ({"num_key_value_heads": 0, "head_dim": -2}, "head_dim is -2, not positive"),
        ({"intermediate_size": 10**15}, "intermediate_size: .*less than or equal to"),
        ({"num_hidden_layers": 10**9}, "num_layers: .*less than or equal to"),
        ({"hidden_size": "wide"}, "config.json: "),
    ],
)
def test_settings_that_no_drafter_has_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """Such an artifact gives NaN, or another drafter than it says."""
    shape = make_shape()
    source = written(tmp_path / "source", "speculators", shape, random_tensors(shape))
    edit_config(source, lambda config: config["transformer_layer_config"].update(changes))
    with pytest.raises(ConfigError, match=words):
        converted(source, tmp_path / "out", "eagle3")


@pytest.mark.parametrize("text", ["[" * 5000, '{"a": ' + "9" * 6000 + "}", "{", "[]", "\xff"])
def test_a_config_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    shape = make_shape()
    source = written(tmp_path / "source", "speculators", shape, random_tensors(shape))
    (source / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"cannot be read: config\.json: "):
        converted(source, tmp_path / "out", "eagle3")


def test_weights_in_shards_are_named(tmp_path: Path) -> None:
    shape = make_shape()
    source = written(tmp_path / "source", "eagle3", shape, random_tensors(shape))
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    with pytest.raises(ConfigError, match=r"in shards \(model-00001-of-00002\.safetensors\)"):
        converted(source, tmp_path / "out", "speculators")


def test_a_folder_without_weights_says_what_makes_them(tmp_path: Path) -> None:
    shape = make_shape()
    source = written(tmp_path / "source", "eagle3", shape, random_tensors(shape))
    (source / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no model\.safetensors; `specpipe export` makes"):
        converted(source, tmp_path / "out", "speculators")


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    shape = make_shape()
    source = written(tmp_path / "source", "eagle3", shape, random_tensors(shape))
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickled \(pytorch_model.bin\).*could run any code"):
        converted(source, tmp_path / "out", "speculators")
