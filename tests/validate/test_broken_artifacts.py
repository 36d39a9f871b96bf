"""The traps that an artifact can carry, each refused by `specpipe validate` with its cause.

An engine starts with most of them, and drafts tokens that are rejected.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.schemas.errors import ValidationError
from specpipe.schemas.settings.stages import ConvertConfig, ValidateConfig
from specpipe.stages.export.convert import run as convert
from specpipe.stages.validate.run import run as validate
from tests.validate.artifacts import Config, Tensors, edit_config, edit_tensors
from tests.validate.small import Trained

IDS = "eagle_aux_hidden_state_layer_ids"


@pytest.fixture(scope="module")
def sound(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny artifact in either format; do not write into it."""
    out = tmp_path_factory.mktemp("sound") / "eagle3"
    convert(ConvertConfig(source=str(exported), out=str(out), format="eagle3"))
    return {"speculators": exported / "checkpoint", "eagle3": out}


def absolute_ids(tensors: Tensors) -> None:
    tensors["d2t"] = tensors["d2t"] + torch.arange(len(tensors["d2t"]))


def nest_ids(config: Config) -> None:
    config["transformer_layer_config"][IDS] = config.pop(IDS)


def set_layer(**changes: Any) -> Callable[[Config], None]:
    """A change of the layer's settings, wherever the format has them."""
    return lambda config: config.get("transformer_layer_config", config).update(changes)


def torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_file(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


TENSORS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "d2t of target ids": (absolute_ids, "d2t leads outside.*it must hold offsets"),
    "no d2t": (lambda t: t.pop("d2t"), "tensor d2t is missing"),
    "d2t of 32 bits": (lambda t: t.update(d2t=t["d2t"].int()), r"d2t is torch.int32 \[64\]"),
    "no lm_head, D < V": (lambda t: t.pop("lm_head.weight"), "lm_head.weight is missing"),
    "NaN": (lambda t: t["fc.weight"][3, 5].fill_(torch.nan), "fc.weight holds NaN"),
    "fc of two layers": (
        lambda t: t.update({"fc.weight": t["fc.weight"][:, :64].clone()}),
        r"fc.weight is .* but must be float \[32, 96\]",
    ),
    "a foreign embedding": (
        lambda t: t.update({"embed_tokens.weight": torch.ones(96, 32)}),
        r"replay: .*an embedding of its own, \d+% away from the target's",
    ),
    "a tensor of another program": (
        lambda t: t.update({"layers.7.hidden_norm.weight": torch.ones(32)}),
        "layers.7.hidden_norm.weight does not belong here",
    ),
}
CONFIGS: dict[str, tuple[Callable[[Config], object], str]] = {
    "a switch left to its default": (
        lambda c: c.pop("norm_before_residual"),
        "'norm_before_residual' is missing; an engine would assume a default",
    ),
    "a switch that has no tensors": (
        lambda c: c.update(fc_norm=True),
        r"tensor fc_norm\.0\.weight is missing",
    ),
    "layer 0": (lambda c: c.update({IDS: [0, 3, 5]}), r"\[0, 3, 5\] must ascend within 1\.\.6"),
    "a layer above the last": (lambda c: c.update({IDS: [1, 3, 7]}), r"must ascend within 1\.\.6"),
    "other layers": (
        lambda c: (
            c.update({IDS: [2, 4, 5]}, eagle_config={**c["eagle_config"], IDS: [1, 3, 4]})
            if "eagle_config" in c
            else c.update({IDS: [2, 4, 5]})
        ),
        r"takes the layers \[2, 4, 5\], but .* holds \[1, 3, 5\]",
    ),
    "two layers for three": (
        lambda c: c.update({IDS: [1, 3]}),
        "num_aux_hidden_states is 3, but must be 2",
    ),
    "no number of layers": (
        lambda c: c.get("transformer_layer_config", c).pop("num_aux_hidden_states"),
        "'num_aux_hidden_states' is missing",
    ),
    "no rope": (set_layer(rope_parameters={}), "rope_parameters must name rope_type"),
    "another vocabulary": (set_layer(vocab_size=100), "vocab_size is 100, but must be 96"),
    "a layer that no engine has": (
        set_layer(model_type="gemma3"),
        "'gemma3' is none of llama, qwen3",
    ),
}
ONE_FORMAT: dict[str, tuple[str, Callable[[Config], object], str]] = {
    "nested ids": ("speculators", nest_ids, f"'{IDS}' is missing"),
    "another target": (
        "speculators",
        lambda c: c["speculators_config"]["verifier"].update(architectures=["X"]),
        r"architectures are not \['LlamaForCausalLM'\], but \['X'\]",
    ),
    "vLLM's ids in SGLang's place": (
        "eagle3",
        lambda c: c["eagle_config"].update({IDS: c[IDS]}),
        r"SGLang's numbering, one less\) is \[1, 3, 5\], but must be \[0, 2, 4\]",
    ),
    "two ropes": (
        "eagle3",
        lambda c: c.update(rope_theta=5e5),
        "rope_theta is 500000.0, but must be 10000.0",
    ),
    "a switch under a name that ignores it": (
        "eagle3",
        lambda c: c.update(norm_output=True),
        r"architectures is \['LlamaForCausalLMEagle3'\], but must be \['Eagle3LlamaForCausalLM'\]",
    ),
    "a lm_head that would not be loaded": (
        "eagle3",
        lambda c: c.update(draft_vocab_size=None),
        "draft_vocab_size is None, but a lm_head is there",
    ),
    "two layers in one midlayer": (
        "eagle3",
        lambda c: c.update(num_hidden_layers=2),
        "the format cannot hold 2 layers",
    ),
}
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn weights": (torn, "model.safetensors cannot be read"),
    "pickled weights": (no_file, r"its weights are pickled \(pytorch_model.bin\)"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
    "half a config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "a JSON list, not an object"),
}


def cases() -> list[Any]:
    """(format, change of the folder, words)"""
    both = ("speculators", "eagle3")
    found: list[tuple[str, str, Callable[[Path], object], str]] = []
    for name, (of_tensors, words) in TENSORS.items():
        found += [(name, format, partial(edit_tensors, edit=of_tensors), words) for format in both]
    for name, (of_config, words) in CONFIGS.items():
        found += [(name, format, partial(edit_config, edit=of_config), words) for format in both]
    for name, (format, of_config, words) in ONE_FORMAT.items():
        found.append((name, format, partial(edit_config, edit=of_config), words))
    found += [(name, "eagle3", of_files, words) for name, (of_files, words) in FILES.items()]
    return [pytest.param(*case[1:], id=f"{case[0]}, {case[1]}") for case in found]


@pytest.mark.parametrize(("format", "damage", "words"), cases())
def test_broken_artifact_is_refused_with_its_cause(
    trained: Trained,
    sound: dict[str, Path],
    tmp_path: Path,
    format: str,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    artifact = Path(shutil.copytree(sound[format], tmp_path / "artifact"))
    damage(artifact)
    findings = tmp_path / "findings.json"
    config = ValidateConfig(artifact=str(artifact), dump=str(trained.dump), out=str(findings))
    with pytest.raises(ValidationError, match=words) as raised:
        validate(config)
    assert raised.value.exit_code == 4
    found = json.loads(findings.read_text())
    assert not found["passed"]
    assert found["serve"] is None


@pytest.mark.parametrize("format", ["speculators", "eagle3"])
def test_the_sound_one_passes(trained: Trained, sound: dict[str, Path], format: str) -> None:
    """Or the cases above would show nothing."""
    assert validate(ValidateConfig(artifact=str(sound[format]), dump=str(trained.dump))).passed
