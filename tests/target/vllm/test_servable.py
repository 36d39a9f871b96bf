"""Whether vLLM serves a drafter for a target, known without starting it."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from specpipe.schemas.errors import ConfigError
from specpipe.stages.target.vllm.support import servable as module
from specpipe.stages.target.vllm.support.families import ENVIRONMENT, FAMILIES
from specpipe.stages.target.vllm.support.model_source import ModelSource
from specpipe.stages.target.vllm.support.model_table import methods_in, model_table, models_of
from specpipe.stages.target.vllm.support.servable import minor, servable

REGISTRY = """
_TEXT_GENERATION_MODELS = {
    "AForCausalLM": ("a", "AForCausalLM"),
    "BForCausalLM": ("b", "BForCausalLM"),
    "CForCausalLM": ("vllm.models.c", "CForCausalLM"),
    "PlainForCausalLM": ("a", "Plain"),
}
_EMBEDDING_MODELS = {"EModel": ("a", "AForCausalLM")}
_MULTIMODAL_MODELS = {}
_TRANSFORMERS_SUPPORTED_MODELS = {"BForCausalLM": ("b", "BForCausalLM")}
"""


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    """A package in vLLM's form: bases in other files, by platform and under other names."""
    files = {
        "model_executor/models/registry.py": REGISTRY,
        "model_executor/models/a.py": (
            "from .interfaces import SupportsEagle3, SupportsLoRA\n"
            "class Plain(SupportsLoRA): ...\n"
            "class AForCausalLM(nn.Module, SupportsEagle3): ...\n"
        ),
        "model_executor/models/b.py": (
            "from vllm.model_executor.models.a import AForCausalLM as Base\n"
            "class BForCausalLM(Base): ...\n"
        ),
        "models/c/__init__.py": (
            "if is_cuda():\n"
            "    from .gpu import CForCausalLM\n"
            "else:\n"
            "    from .cpu import CForCausalLM\n"
        ),
        "models/c/gpu.py": (
            "from vllm.model_executor.models import interfaces\n"
            "class CForCausalLM(interfaces.SupportsEagle3[int]): ...\n"
        ),
        "models/c/cpu.py": "class CForCausalLM: ...\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return ModelSource(tmp_path)


def test_interfaces_are_read_from_the_source(source: ModelSource) -> None:
    assert source.having("SupportsEagle3") == {"AForCausalLM", "BForCausalLM", "CForCausalLM"}
    assert models_of(source) == {
        "": ("PlainForCausalLM",),
        "eagle3": ("AForCausalLM", "BForCausalLM", "CForCausalLM"),
    }


def test_without_vllm_the_newest_of_the_table_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_version", lambda: None)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert list(model_table()) == ["0.32", "0.33"]
    how = {
        "LlamaForCausalLM": "vllm",
        # Since 0.33.
        "GraniteMoeForCausalLM": "vllm",
        "Gemma3ForCausalLM": "plugin",
        "MixtralForCausalLM": "plugin",
        "GPT2LMHeadModel": "no",
        "HeliumForCausalLM": "transformers",
        "OnlyOnOneHubForCausalLM": "unknown",
    }
    for architecture, expected in how.items():
        found = servable(architecture)
        assert found.how == expected, architecture
        assert not found.is_installed
        assert "vLLM 0.33 (none is installed here)" in found.in_words
        assert found.is_served == (expected in ("vllm", "transformers"))


@pytest.mark.parametrize(
    ("asked", "is_served"),
    [("1", True), ("Gemma3ForCausalLM", True), ("MixtralForCausalLM, Gemma3ForCausalLM", True),
     ("MixtralForCausalLM", False), ("0", False), ("", False)],
)  # fmt: skip
def test_a_target_of_the_plugin_is_served_where_it_is_asked_for(
    asked: str, is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, asked)
    monkeypatch.setattr(module, "installed_version", lambda: None)
    found = servable("Gemma3ForCausalLM")
    assert found.is_served == is_served
    if is_served:
        found.require()
    else:
        with pytest.raises(ConfigError, match=f"{ENVIRONMENT}=1.*set it here too"):
            found.require()


def test_the_plugin_is_not_counted_on_outside_of_the_versions_that_it_is_tried_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "installed_version", lambda: "0.41.2")
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    module._methods.cache_clear()
    found = servable("Gemma3ForCausalLM")
    assert (found.how, found.vllm) == ("no", "0.41.2")
    assert servable("LlamaForCausalLM").how == "vllm"


def test_the_plugin_has_no_model_that_every_version_serves_by_itself() -> None:
    for architecture in FAMILIES:
        methods = [methods_in(models, architecture) for models in model_table().values()]
        assert [] in methods, architecture


def installed() -> Path:
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    return Path(spec.submodule_search_locations[0])


@pytest.mark.vllm
def test_the_table_is_that_of_the_installed_vllm() -> None:
    """Where it is not: python -m scripts.serving.model_table VERSION FOLDER."""
    found = models_of(ModelSource(installed()))
    assert found == model_table()[minor(str(module.installed_version()))]


CLASSES = """
import json, sys
from vllm.model_executor.models.interfaces import supports_eagle3
from vllm.model_executor.models.registry import ModelRegistry
classes = {name: ModelRegistry._try_load_model_cls(name) for name in sys.argv[1:]}
print(json.dumps({name: bool(supports_eagle3(found)) for name, found in classes.items()}))
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_the_source_says_what_the_classes_are() -> None:
    package = installed()
    names = [
        *FAMILIES,
        *("LlamaForCausalLM", "Qwen2ForCausalLM", "Phi3ForCausalLM", "GptOssForCausalLM"),
        *("DeepseekV3ForCausalLM", "Olmo2ForCausalLM", "OPTForCausalLM", "Gemma4ForCausalLM"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", CLASSES, *names], capture_output=True, text=True, check=True
    )
    models = models_of(ModelSource(package))
    read = {name: methods_in(models, name) == ["eagle3"] for name in names}
    assert read == json.loads(done.stdout.splitlines()[-1])
    assert set(read.values()) == {True, False}
