"""How a drafter begins: fresh, from an artifact of any program, from the target's last layers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from specpipe.schemas.errors import ConfigError, IdentityError, IntegrityError
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.drafters.parts.eagle.warm_start import with_norm_in_it
from specpipe.stages.drafters.start import Start, begin
from specpipe.stages.export.run import run as export
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.samples.batch import DrafterSample, make_batch
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.states import SampleStates
from specpipe.stages.target.head.verifier_head import load_embedding, load_lm_head
from specpipe.stages.train.run import run
from tests.papers import PAPERS
from tests.train.conftest import MakeConfig, MakeDump, save_target

Tensors = dict[str, Tensor]


def started(make_config: MakeConfig, **changes: Any) -> Start:
    config = make_config(**changes)
    dump = Dump.open(config.dump)
    return begin(config, dump, config.layers or dump.identity.layers, dump.vocab)


def exported(make_config: MakeConfig, folder: Path, **changes: Any) -> tuple[Path, VocabMap]:
    """An artifact of a short run, and its draft vocabulary."""
    config = make_config(out=str(folder / "run"), max_steps=2, **changes)
    run(config)
    export(
        ExportConfig(
            checkpoint=config.out, out=str(folder / "export"), validation=("structure", "replay")
        )
    )
    vocab = load_checkpoint(resolve_checkpoint(config.out)).vocab
    return folder / "export" / "checkpoint", vocab


@pytest.fixture(scope="module")
def plain(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VocabMap]:
    """An artifact with D < V; do not write into it."""

    def make(**changes: Any) -> TrainConfig:
        return TrainConfig(
            **PAPERS
            | {"dump": str(dump), "device": "cpu", "draft_vocab_size": 64, "batch_tokens": 300}
            | {"held_out_fraction": 0.2}
            | changes
        )

    return exported(make, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def artifact(plain: tuple[Path, VocabMap], tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain[0], tmp_path / "artifact"))


def edit(artifact: Path, change: Callable[[Tensors, dict[str, Any]], object]) -> None:
    tensors = load_file(artifact / "model.safetensors")
    config = json.loads((artifact / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, artifact / "model.safetensors")
    (artifact / "config.json").write_text(json.dumps(config))


INIT = {"draft_vocab_size": None}


def same_weights(start: Start, tensors: Tensors) -> None:
    for name, parameter in start.model.state_dict().items():
        assert torch.equal(parameter, tensors[name].float()), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_type": "qwen3", "num_layers": 2, "fc_norm": True, "norm_output": True},
        {"sliding_window": 12, "norm_before_fc": True, "norm_before_residual": True},
        {"draft_vocab_size": 128, "rope_theta": 500.0},
        {"layers": (1, 3), "intermediate_size": 24},
    ],
    ids=str,
)
def test_what_was_exported_begins_again(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder, vocab = exported(make_config, tmp_path, **changes)
    layers = {"layers": changes["layers"]} if "layers" in changes else {}
    start = started(make_config, **INIT, **layers, init_from=str(folder))
    trained = load_checkpoint(resolve_checkpoint(tmp_path / "run"))
    assert start.shape == trained.shape
    assert torch.equal(start.vocab.target_ids_D, vocab.target_ids_D)
    same_weights(start, load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("hidden_size", [24, 40])
def test_a_projected_embedding_is_found_again(
    make_config: MakeConfig, tmp_path: Path, hidden_size: int
) -> None:
    folder, _ = exported(make_config, tmp_path, hidden_size=hidden_size)
    start = started(make_config, **INIT, init_from=str(folder))
    trained = load_checkpoint(resolve_checkpoint(tmp_path / "run"))
    found = start.model.get_parameter("embed_proj.weight")
    torch.testing.assert_close(found, trained.model["embed_proj.weight"], rtol=0, atol=5e-3)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config of `LlamaForCausalLMEagle3`, as SpecForge, ModelOpt and the paper's code write."""
    layer = config["transformer_layer_config"]
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    more = ("rms_norm_eps", "max_position_embeddings", "vocab_size", "hidden_act")
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "draft_vocab_size": config["draft_vocab_size"],
        "rope_theta": layer["rope_parameters"]["rope_theta"],
        **{key: layer[key] for key in (*keys, *more)},
    }


@pytest.mark.parametrize("naming", ["midlayer", "layers.0"])
@pytest.mark.parametrize("ids", ["none", "eagle_config"])
def test_other_programs_names(
    make_config: MakeConfig, artifact: Path, dump: Path, naming: str, ids: str
) -> None:
    """Their names, the target's embedding within, rope's buffer, and layers by their outputs."""
    before = load_file(artifact / "model.safetensors")
    opened = Dump.open(str(dump))

    def change(tensors: Tensors, config: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace("layers.0", naming)] = tensors.pop(name)
        tensors[f"{naming}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["embed_tokens.weight"] = load_embedding(opened.target_file).bfloat16()
        flat = _flat(config)
        if ids == "eagle_config":
            outputs = [layer - 1 for layer in opened.identity.layers]
            flat["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": outputs}
        config.clear()
        config.update(flat)

    edit(artifact, change)
    start = started(make_config, **INIT, init_from=str(artifact))
    assert start.shape.aux_layers == opened.identity.layers
    same_weights(start, before)


def test_an_artifact_without_layer_ids_reads_what_engines_take_undeclared(
    make_config: MakeConfig, make_dump: MakeDump, tmp_path: Path
) -> None:
    both = make_dump(num_target_layers=8, layers=(2, 4, 5, 7))
    folder, _ = exported(make_config, tmp_path, dump=str(both), layers=(2, 4, 5))
    edit(folder, lambda _, config: config.pop("eagle_aux_hidden_state_layer_ids"))
    given = INIT | {"dump": str(both), "init_from": str(folder), "out": str(tmp_path / "further")}
    with pytest.raises(ConfigError, match="takes the layers 2, 4, 5, the run those of 2, 4, 7"):
        run(make_config(**given))
    run(make_config(**given, layers=(2, 4, 5), max_steps=2))


def test_a_whole_vocabulary_may_leave_the_lm_head_to_the_target(
    make_config: MakeConfig, dump: Path, tmp_path: Path
) -> None:
    folder, _ = exported(make_config, tmp_path, draft_vocab_size=128)
    edit(folder, lambda tensors, _: tensors.pop("lm_head.weight"))
    start = started(make_config, **INIT, init_from=str(folder))
    rows = load_lm_head(Dump.open(str(dump)).target_file)
    assert torch.equal(start.model.heads().of(0)[0], rows.float())


def _sort_out(tensors: Tensors) -> None:
    tensors["d2t"] = tensors["d2t"].flip(0)


def _stored_as(tensors: Tensors, dtype: torch.dtype) -> None:
    tensors["fc.weight"] = tensors["fc.weight"].to(dtype)


def _layer(**changes: Any) -> Callable[[Tensors, dict[str, Any]], object]:
    return lambda tensors, config: config["transformer_layer_config"].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, c: t.pop("fc.weight"), "it lacks fc.weight"),
        (lambda t, c: t.pop("lm_head.weight"), "it lacks lm_head.weight"),
        (lambda t, c: t.update(extra=torch.zeros(1)), "nothing is known of extra"),
        (
            lambda t, c: t.update({"fc.weight": t["fc.weight"][:, :64].clone()}),
            r"fc.weight is \[32, 64\] instead of \[32, 96\]",
        ),
        (lambda t, c: t["norm.weight"].fill_(float("nan")), "NaN or infinity in norm.weight"),
        (lambda t, c: _stored_as(t, torch.int8), "quantised weights without their scales"),
        (lambda t, c: _stored_as(t, torch.float8_e4m3fn), "fc.weight is torch.float8_e4m3fn"),
        (_layer(num_hidden_layers=10**9), "num_layers: .* 16384"),
        (_layer(intermediate_size=10**15), "intermediate_size: .* 16777216"),
        (_layer(rms_norm_eps=-1.0), "rms_norm_eps is -1.0, negative"),
        (_layer(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope_theta 0 must"),
        (lambda t, c: t.pop("d2t"), "64, but no d2t"),
        (lambda t, c: _sort_out(t), "ascending"),
        (lambda t, c: t["t2d"].fill_(True), "do not describe the same"),
        (lambda t, c: c.update(draft_vocab_size=65), "d2t names 64 tokens, its config 65"),
        (lambda t, c: c.update(fc_norm=True), r"it lacks fc_norm.0.weight"),
        (
            lambda t, c: c.update(eagle_aux_hidden_state_layer_ids=[1, 2, 4]),
            r"takes the layers 1, 2, 4, the run those of 1, 2, 3.*--layers",
        ),
        (
            lambda t, c: c["transformer_layer_config"].update(vocab_size=99),
            "vocabulary of 99 .* not for this one with 128",
        ),
        (lambda t, c: c.update(target_hidden_size=64), "64 wide states"),
        (
            lambda t, c: c["transformer_layer_config"].pop("intermediate_size"),
            "does not say 'intermediate_size'",
        ),
        (lambda t, c: c["transformer_layer_config"].update(hidden_act="gelu"), "is not silu"),
        (
            lambda t, c: t.update({"embed_tokens.weight": torch.ones(128, 32)}),
            "an embedding of its own",
        ),
        (
            lambda t, c: t.update({"embed_tokens.weight": torch.ones(127, 32)}),
            "has 127 rows, not 128",
        ),
    ],
)
def test_what_is_broken_or_foreign_is_named(
    make_config: MakeConfig,
    artifact: Path,
    change: Callable[[Tensors, dict[str, Any]], object],
    words: str,
) -> None:
    edit(artifact, change)
    with pytest.raises(ConfigError, match=words) as raised:
        started(make_config, **INIT, init_from=str(artifact))
    assert str(artifact) in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_output": True}, "norm_output True is not that of"),
        ({"num_layers": 2}, "num_layers 2 is not that of .*, 1; --init-from takes"),
        ({"rope_theta": 7.0}, "rope_theta 7.0 is not that of"),
        ({"layers": (1, 2)}, "takes the layers 1, 2, 3, the run those of 1, 2"),
    ],
)
def test_settings_that_ask_for_another_drafter(
    make_config: MakeConfig, artifact: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        started(make_config, **INIT, init_from=str(artifact), **changes)


def test_what_is_no_artifact(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is it an artifact"):
        started(make_config, **INIT, init_from=str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="not an object"):
        started(make_config, **INIT, init_from=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        started(make_config, **INIT, init_from=str(tmp_path))


def test_a_run_goes_on_where_the_artifacts_run_ended(
    make_config: MakeConfig, plain: tuple[Path, VocabMap]
) -> None:
    """The first evaluation is of the artifact, in bfloat16; resuming keeps the beginning."""
    folder, vocab = plain
    config = make_config(**INIT, init_from=str(folder), max_steps=3)
    result = run(config)
    trained = load_checkpoint(resolve_checkpoint(config.out))
    assert torch.equal(trained.vocab.target_ids_D, vocab.target_ids_D)
    before = load_checkpoint(resolve_checkpoint(folder.parents[1] / "run")).state.best
    assert before is not None
    expected = before.replay_temperature_1.tau
    assert result.untrained.replay_temperature_1.tau == pytest.approx(expected, rel=2e-3)


def test_a_ready_vocabulary(make_config: MakeConfig, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(3, 90, 2))
    start = started(make_config, **INIT, draft_vocab_file=str(tmp_path / "ids.npy"))
    assert start.vocab.target_ids_D.tolist() == list(range(3, 90, 2))
    assert start.shape.draft_vocab_size == len(range(3, 90, 2))


def test_warm_start_says_what_the_targets_last_layer_does(
    make_config: MakeConfig, dump: Path
) -> None:
    folder = dump.parent / "target"
    start = started(make_config, warm_start=str(folder))
    target: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    T = 9
    generator = torch.Generator().manual_seed(0)
    aux_TLH = torch.randn(T, 3, 32, generator=generator).bfloat16()
    hidden_TH = aux_TLH[:, -1].float()
    position_ids = torch.arange(T)[None]
    rope = target.model.rotary_emb(hidden_TH[None], position_ids)
    mask = torch.full((T, T), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        out = target.model.layers[-1](
            hidden_TH[None], attention_mask=mask, position_embeddings=rope
        )
        want_TH = target.model.norm(out)[0]
    rows = np.zeros(T - 1, np.float32)
    sample = DrafterSample(
        np.arange(T, dtype=np.int32),
        np.array([0] + [1] * (T - 1), np.uint8),
        SampleStates(
            aux_TLH=aux_TLH.view(torch.uint16).numpy(),
            final_SH=np.zeros((T - 1, 32), np.uint16),
            logz_S=rows,
            token_logprob_S=rows,
            argmax_S=rows.astype(np.int32),
        ),
    )
    batch = make_batch([sample], 1)
    got_NH = start.model(batch)[0]
    torch.testing.assert_close(got_NH, want_TH[batch.starts_N], rtol=1e-4, atol=1e-4)
    rows_DH = target.lm_head.weight[start.vocab.target_ids_D]
    assert torch.equal(start.model.heads().of(0)[0], rows_DH)


def begins_alike(first: Start, second: Start) -> bool:
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_by_default_it_begins_with_the_layer_that_the_dump_holds(
    make_config: MakeConfig, dump: Path
) -> None:
    stored = started(make_config, fresh_layer=False)
    target = str(dump.parent / "target")
    assert begins_alike(stored, started(make_config, fresh_layer=True, warm_start=target))
    assert not begins_alike(stored, started(make_config, fresh_layer=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 2},
        {"intermediate_size": 20},
        {"hidden_size": 24},
        {"layer_type": "qwen3"},
        {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
    ],
)
def test_a_drafter_of_another_shape_begins_fresh(
    make_config: MakeConfig, changes: dict[str, Any]
) -> None:
    stored = started(make_config, fresh_layer=False, **changes)
    assert begins_alike(stored, started(make_config, fresh_layer=True, **changes))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_warm_start_from_quantised_weights(
    make_config: MakeConfig, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = save_target(tmp_path / "quantised", 0)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("mlp.up_proj.weight"))
    wrong = {name.replace("layers.0", f"layers.{n}"): weights[name].to(dtype) for n in range(9)}
    save_file(
        weights | {n: t for n, t in wrong.items() if n in weights}, folder / "model.safetensors"
    )
    with pytest.raises(ConfigError, match=r"up_proj\.weight is quantised"):
        started(make_config, warm_start=str(folder))
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="its layers are quantised"):
        started(make_config, warm_start=str(folder))


def test_projections_give_what_norms_of_queries_and_keys_would() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OH = torch.randn(16, 32, generator=generator)
    norm_E, input_norm_H = torch.rand(8, generator=generator), torch.rand(32, generator=generator)
    x_TH = torch.randn(4096, 32, generator=generator) * input_norm_H
    normed_ThE = torch.nn.functional.rms_norm((x_TH @ weight_OH.T).view(-1, 2, 8), (8,), norm_E)
    plain_ThE = (x_TH @ with_norm_in_it(weight_OH, norm_E, input_norm_H).T).view(-1, 2, 8)
    size_hE = normed_ThE.square().mean(0).sqrt()
    torch.testing.assert_close(plain_ThE.square().mean(0).sqrt(), size_hE, rtol=0.1, atol=0.01)
    cosine = torch.nn.functional.cosine_similarity(normed_ThE, plain_ThE, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 24}, "its layers are 32 wide, the drafter's 24"),
        ({"intermediate_size": 20}, r"gate_proj.weight \[48, 32\] instead of \[20, 32\]"),
        ({"num_layers": 8}, "hold no model.layers"),
        ({"layer_type": "qwen3"}, "q_norm"),
    ],
)
def test_warm_start_of_another_shape(
    make_config: MakeConfig, dump: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        started(make_config, warm_start=str(dump.parent / "target"), **changes)


def test_warm_start_from_what_is_damaged(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = save_target(tmp_path / "broken", 0)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[: len(whole) // 2], b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=f"{path}: it is no readable safetensors"):
            started(make_config, warm_start=str(folder))
    path.unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}')
    (folder / "b").mkdir()
    with pytest.raises(IntegrityError, match=r"b, which model\.safetensors\.index\.json names"):
        started(make_config, warm_start=str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: malformed JSON"):
        started(make_config, warm_start=str(folder))


def test_warm_start_from_another_target(make_config: MakeConfig, tmp_path: Path) -> None:
    save_target(tmp_path / "other", 5)
    with pytest.raises(IdentityError, match="final norm is not that of the dump's"):
        started(make_config, warm_start=str(tmp_path / "other"))
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "gemma3"}))
    with pytest.raises(ConfigError, match="of type 'gemma3'"):
        started(make_config, warm_start=str(tmp_path / "other"))
