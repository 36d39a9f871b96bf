"""What is fetched of a hub's model: what transformers loads, once, and code if it is asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from specpipe.schemas.errors import IdentityError
from specpipe.schemas.settings.stages import DumpConfig, ExportConfig
from specpipe.stages.target.files.identity import load_config, target_identity
from specpipe.stages.target.files.location import local_folder, on_this_disk
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.validate.target_check import check_target
from tests.target.files.hub import hub

CODE = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "llama"
    ran_own_code = True
"""


@pytest.fixture
def repository(target: Callable[..., Path], tmp_path: Path) -> Path:
    """A target with its weights three times, and code."""
    folder = Path(shutil.copytree(target("llama"), tmp_path / "repository"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_own.OwnConfig"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(CODE)
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    for file, part in (("model-1.safetensors", names[::2]), ("model-2.safetensors", names[1::2])):
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    (folder / "original").mkdir()
    for file in ("original/model.safetensors", "consolidated.safetensors"):
        shutil.copy(folder / "model.safetensors", folder / file)
    (folder / "original" / "params.json").write_text("{}")
    index = {
        "weight_map": {name: f"model-{1 + at % 2}.safetensors" for at, name in enumerate(names)}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    return tmp_path / "cache"


def fetch(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    with_weights: bool = True,
    with_code: bool = False,
) -> tuple[Path, set[str]]:
    with hub(repository) as (address, fetched):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        folder = local_folder("org/model", with_weights=with_weights, with_code=with_code)
    assert len(fetched) == len(set(fetched))
    return folder, set(fetched)


SMALL = {"config.json", "generation_config.json", "model.safetensors.index.json"}


@pytest.mark.usefixtures("cache")
def test_what_the_index_names(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fetched = fetch(repository, monkeypatch)
    assert fetched == {*SMALL, "model-1.safetensors", "model-2.safetensors"}
    assert target_identity(str(folder)).weights_sha256 == on_disk_hash(repository)


def on_disk_hash(folder: Path) -> str:
    return target_identity(str(folder)).weights_sha256


@pytest.mark.usefixtures("cache")
def test_the_whole_without_an_index(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "model.safetensors.index.json").unlink()
    _, fetched = fetch(repository, monkeypatch)
    assert fetched == {"config.json", "generation_config.json", "model.safetensors"}


@pytest.mark.usefixtures("cache")
def test_a_lone_shard_without_an_index(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lone = "model-00001-of-00001.safetensors"
    (repository / "model.safetensors.index.json").unlink()
    (repository / "model.safetensors").rename(repository / lone)
    folder, fetched = fetch(repository, monkeypatch)
    assert fetched == {"config.json", "generation_config.json", lone}
    config = DumpConfig(target=str(folder), data=("-",), out="-", device="cpu")
    head = HfBackend(config, (1,)).model.get_output_embeddings().weight
    assert head.equal(load_file(repository / lone)["lm_head.weight"])


@pytest.mark.usefixtures("cache")
def test_code_when_it_is_asked_for(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fetched = fetch(repository, monkeypatch, with_weights=False)
    assert fetched == SMALL
    folder, fetched = fetch(repository, monkeypatch, with_weights=False, with_code=True)
    assert fetched == {"configuration_own.py"}
    assert load_config(folder, trust_remote_code=True).ran_own_code
    assert not hasattr(load_config(folder), "ran_own_code")


@pytest.mark.usefixtures("cache")
def test_weights_that_are_cached_are_compared(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(checkpoint="-", out="-")
    made_for = target_identity(str(repository))
    other = made_for.model_copy(update={"weights_sha256": "0" * 64})
    fetch(repository, monkeypatch, with_weights=False)
    lines: list[str] = []
    check_target("org/model", other, config, lines.append, to_serve=False)
    assert "its weights are not compared" in lines[0]
    folder, _ = fetch(repository, monkeypatch)
    assert on_this_disk("org/model") == folder
    check_target("org/model", made_for, config, lines.append, to_serve=False)
    with pytest.raises(IdentityError, match="its weights differ"):
        check_target("org/model", other, config, lines.append, to_serve=False)
    assert len(lines) == 1
