"""A copy of the target with the trained layer in it: nothing else is another."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from specpipe.stages.drafters.artifact_format import Drafter
from specpipe.stages.drafters.mtp.architecture import ARCHITECTURE
from tests.drafters.mtp.targets import TARGETS, mtp_tensors, save_target, shape_of
from tests.pipeline.in_process import specpipe


def save_artifact(folder: Path, family: str, seed: int) -> dict[str, torch.Tensor]:
    """Another layer than that of the target; its tensors under the file's names."""
    folder.mkdir()
    shape, tensors = shape_of(family), mtp_tensors(family, seed)
    format = ARCHITECTURE.formats["mtp"]
    ours = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    named = TARGETS[family]["architectures"][0]
    format.write(folder, format.config(Drafter(shape, "t", named, 3)), ours)
    return tensors


def in_shards(folder: Path) -> None:
    """The target's weights in two files and an index, those of the MTP layer in both."""
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    places = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: whole[name] for name in names if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt", "of": file})
    index = {"metadata": {"total_size": 7}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("family", ["mimo", "glm4_moe"])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_layer_alone_is_replaced(family: str, sharded: bool, tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", family)
    if sharded:
        in_shards(target)
    (target / "LICENSE").write_text("anything")
    new = save_artifact(tmp_path / "artifact", family, seed=1)
    flags: list[str | Path] = ["--format", "stitched", "--target", target]
    out = tmp_path / "out"
    ended = specpipe("convert", tmp_path / "artifact", "--out", out, *flags)
    assert ended.returncode == 0, ended.stderr
    assert {p.name for p in target.iterdir()} == {p.name for p in out.iterdir()} - {
        "provenance.json"
    }
    for path in target.iterdir():
        if path.suffix != ".safetensors":
            assert (out / path.name).read_bytes() == path.read_bytes()
            continue
        before, after = load_file(path), load_file(out / path.name)
        assert before.keys() == after.keys()
        with safe_open(path, "pt") as one, safe_open(out / path.name, "pt") as other:
            assert one.metadata() == other.metadata()
        for name, tensor in after.items():
            expected = new[name].to(before[name].dtype) if name in new else before[name]
            assert torch.equal(tensor, expected), name
    again = specpipe("convert", tmp_path / "artifact", "--out", out, *flags, "--json")
    assert again.last_json["did_nothing"]


def test_a_target_without_a_layer_gets_one_in_its_last_file(tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", "mimo", with_mtp=False)
    in_shards(target)
    new = save_artifact(tmp_path / "artifact", "mimo", seed=1)
    flags: list[str | Path] = ["--format", "stitched", "--target", target]
    ended = specpipe("convert", tmp_path / "artifact", "--out", tmp_path / "out", *flags)
    assert ended.returncode == 0, ended.stderr
    last = "model-00002-of-00002.safetensors"
    written = load_file(tmp_path / "out" / last)
    assert all(torch.equal(written[name], tensor) for name, tensor in new.items())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert all(index["weight_map"][name] == last for name in new)
    added = sum(tensor.numel() * 2 for tensor in new.values())
    assert index["metadata"]["total_size"] == 7 + added


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers 2"),
        ({"num_nextn_predict_layers": 0}, "num_nextn_predict_layers 0"),
        ({"num_hidden_layers": 4}, "is not the one"),
    ],
)
def test_a_target_that_would_not_draft_so_is_refused(
    change: dict[str, int], says: str, tmp_path: Path
) -> None:
    target = save_target(tmp_path / "target", "mimo")
    (target / "config.json").write_text(json.dumps(TARGETS["mimo"] | change))
    save_artifact(tmp_path / "artifact", "mimo", seed=1)
    ended = specpipe(
        "convert", tmp_path / "artifact", "--out", tmp_path / "out",
        "--format", "stitched", "--target", target,
    )  # fmt: skip
    assert ended.returncode == 2
    assert says in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["out", "a/b"])
def test_a_copy_of_the_target_within_itself_is_refused(below: str, tmp_path: Path) -> None:
    target = save_target(tmp_path / "target", "mimo")
    save_artifact(tmp_path / "artifact", "mimo", seed=1)
    before = sorted(target.rglob("*"))
    flags: list[str | Path] = ["--format", "stitched", "--target", target, "--out", target / below]
    ended = specpipe("convert", tmp_path / "artifact", *flags)
    assert ended.returncode == 2
    assert "lies in the target's folder" in ended.stderr
    assert sorted(target.rglob("*")) == before
