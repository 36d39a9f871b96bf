"""Whether vLLM serves a drafter for a target, known without starting it."""

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from specpipe.schemas.errors import ConfigError
from specpipe.stages.drafters.registry import architecture as drafter_architecture
from specpipe.stages.target.vllm.support import servable as module
from specpipe.stages.target.vllm.support.aux_interface import FOR_MTP_ALONE
from specpipe.stages.target.vllm.support.engine_needs import EngineNeeds, runners
from specpipe.stages.target.vllm.support.families import ENVIRONMENT, FAMILIES
from specpipe.stages.target.vllm.support.model_source import ModelSource
from specpipe.stages.target.vllm.support.model_table import model_table, models_of, readable_in
from specpipe.stages.target.vllm.support.mtp_layers import MTP_LAYERS
from specpipe.stages.target.vllm.support.servable import minor, servable

AUX = drafter_architecture("eagle3").serving

REGISTRY = """
_TEXT_GENERATION_MODELS = {
    "AForCausalLM": ("a", "AForCausalLM"),
    "BForCausalLM": ("b", "BForCausalLM"),
    "CForCausalLM": ("vllm.models.c", "CForCausalLM"),
    "MiMoForCausalLM": ("a", "AForCausalLM"),
    "PlainForCausalLM": ("a", "Plain"),
    "Qwen3NextForCausalLM": ("a", "Plain"),
}
_EMBEDDING_MODELS = {"EModel": ("a", "AForCausalLM")}
_MULTIMODAL_MODELS = {}
_TRANSFORMERS_SUPPORTED_MODELS = {"BForCausalLM": ("b", "BForCausalLM")}
_SPECULATIVE_DECODING_MODELS = {"MiMoMTPModel": ("mimo_mtp", "MiMoMTP")}
"""


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    """A package in vLLM's form: bases in other files, by platform and under other names."""
    files = {
        "model_executor/models/registry.py": REGISTRY,
        "model_executor/models/interfaces.py": (
            "class SupportsLoRA: ...\n"
            "class SupportsStates:\n    def set_aux_hidden_state_layers(self, layers): ...\n"
        ),
        "model_executor/models/a.py": (
            "from .interfaces import SupportsStates, SupportsLoRA\n"
            "class Plain(SupportsLoRA): ...\n"
            "class AForCausalLM(nn.Module, SupportsStates): ...\n"
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
            "class CForCausalLM(interfaces.SupportsStates[int]): ...\n"
        ),
        "models/c/cpu.py": "class CForCausalLM: ...\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return ModelSource(tmp_path)


def test_interfaces_are_read_from_the_source(source: ModelSource) -> None:
    interface = source.interface_with("set_aux_hidden_state_layers")
    assert interface == "SupportsStates"
    assert source.having(interface) == {
        *("AForCausalLM", "BForCausalLM", "CForCausalLM", "MiMoForCausalLM")
    }
    # This vLLM has no MTP layer of Qwen3-Next.
    assert models_of(source) == {
        "": ("PlainForCausalLM", "Qwen3NextForCausalLM"),
        "aux_states": ("AForCausalLM", "BForCausalLM", "CForCausalLM"),
        # It has the interface in name alone.
        "mtp_layer": ("MiMoForCausalLM",),
    }


DRAFTERS = {
    "eagle3": AUX,
    "peagle": EngineNeeds("eagle3", "P-EAGLE", "aux_states", is_parallel=True),
    "dflash": EngineNeeds("dflash", "DFlash", "aux_states", is_parallel=True),
    "dspark": EngineNeeds("dspark", "DSpark", "aux_states", is_parallel=True),
    "mtp": EngineNeeds("mtp", "MTP", "mtp_layer"),
    "eagle1": EngineNeeds("eagle", "EAGLE-1", "final_state"),
    "medusa": EngineNeeds("medusa", "Medusa", "final_state", is_parallel=True),
}


@pytest.mark.parametrize(
    ("name", "vllm", "drafting"),
    [
        ("eagle3", "0.32", ("V1", "V2")),
        ("peagle", "0.32", ("V1",)),
        ("dflash", "0.32", ("V1", "V2")),
        ("dspark", "0.32", ("V2",)),
        ("mtp", "0.32", ("V1", "V2")),
        ("eagle1", "0.32", ("V1", "V2")),
        ("medusa", "0.32", ("V1",)),
        ("medusa", "0.33", ()),
        # Of a version that is not known, the newest that is.
        ("medusa", "0.41", ()),
    ],
)
def test_which_runner_drafts(name: str, vllm: str, drafting: tuple[str, ...]) -> None:
    assert runners(DRAFTERS[name], vllm) == drafting


def test_what_is_served_depends_on_target_and_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_version", lambda: "0.32.0")
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    module._readable.cache_clear()
    how = {
        "LlamaForCausalLM": {"mtp": "no"},
        "Qwen3_5ForCausalLM": {},
        "MiMoForCausalLM": dict.fromkeys(DRAFTERS, "no") | {"mtp": "vllm"},
        "Gemma3ForCausalLM": {"mtp": "no"}
        | dict.fromkeys(("eagle3", "peagle", "dflash", "dspark"), "plugin"),
        "GPT2LMHeadModel": dict.fromkeys(("eagle3", "peagle", "dflash", "dspark", "mtp"), "no"),
        "HeliumForCausalLM": dict.fromkeys(DRAFTERS, "transformers") | {"mtp": "no"},
    }
    for architecture, others in how.items():
        found = {name: servable(architecture, needs) for name, needs in DRAFTERS.items()}
        assert {name: one.how for name, one in found.items()} == dict.fromkeys(
            DRAFTERS, "vllm"
        ) | others, architecture
        for name, one in found.items():
            assert one.is_served_on_cpu == (one.how != "no" and name != "dspark")
    assert "serves DSpark drafters for Qwen3_5ForCausalLM (on a GPU alone)" in (
        servable("Qwen3_5ForCausalLM", DRAFTERS["dspark"]).in_words
    )
    monkeypatch.setattr(module, "installed_version", lambda: "0.33.0")
    found_then = servable("LlamaForCausalLM", DRAFTERS["medusa"])
    assert (found_then.how, found_then.is_served_on_cpu) == ("no", False)


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
        found = servable(architecture, AUX)
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
    found = servable("Gemma3ForCausalLM", AUX)
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
    module._readable.cache_clear()
    found = servable("Gemma3ForCausalLM", AUX)
    assert (found.how, found.vllm) == ("no", "0.41.2")
    assert servable("LlamaForCausalLM", AUX).how == "vllm"


def test_the_plugin_has_no_model_that_every_version_serves_by_itself() -> None:
    for architecture in FAMILIES:
        methods = [readable_in(models, architecture) for models in model_table().values()]
        assert any("aux_states" not in found for found in methods if found is not None), (
            architecture
        )


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


def refused(package: Path) -> dict[str, set[str]]:
    """Methods that each runner refuses, read from vLLM's source: what is compared with
    `speculative_config.method` in the functions that collect what it has not, by == and by in."""
    functions = {
        node.name: node
        for node in ast.walk(ast.parse((package / "config/vllm.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    found: dict[str, set[str]] = {}
    for runner in ("V1", "V2"):
        function = functions[f"_get_{runner.lower()}_model_runner_unsupported_features"]
        compared = [
            node.comparators[0]
            for node in ast.walk(function)
            if isinstance(node, ast.Compare)
            and isinstance(node.ops[0], ast.Eq | ast.In)
            and ast.unparse(node.left).endswith("speculative_config.method")
        ]
        values = [ast.literal_eval(node) for node in compared]
        found[runner] = {
            name for value in values for name in ([value] if isinstance(value, str) else value)
        }
    return found


@pytest.mark.vllm
def test_the_runners_are_those_of_the_installed_vllm() -> None:
    package = installed()
    text = (package / "config/speculative.py").read_text(encoding="utf-8")
    vllm = minor(str(module.installed_version()))
    for needs in DRAFTERS.values():
        is_known = f'"{needs.method}"' in text.partition("RejectionSampleMethod =")[0]
        known = {runner for runner, names in refused(package).items() if needs.method not in names}
        if needs.is_parallel and needs.method not in ("dflash", "dspark"):
            known.discard("V2")
        assert set(runners(needs, vllm)) == (known if is_known else set()), needs


LAYERS = """
import json, sys
from transformers import PreTrainedConfig
from vllm.config.speculative import SpeculativeConfig
from vllm.model_executor.models.registry import _SPECULATIVE_DECODING_MODELS as registered
found = {}
for architecture, model_type in json.loads(sys.argv[1]).items():
    config = PreTrainedConfig(architectures=[architecture], num_nextn_predict_layers=1)
    config.model_type = model_type
    (drafter,) = SpeculativeConfig.hf_config_override(config).architectures
    found[architecture] = drafter if drafter in registered else None
print(json.dumps(found))
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_the_mtp_layers_are_those_that_vllm_makes_of_a_targets_config() -> None:
    installed()
    types = {name: layer.model_type for name, layer in MTP_LAYERS.items()}
    done = subprocess.run(
        [sys.executable, "-c", LAYERS, json.dumps(types | {"LlamaForCausalLM": "llama"})],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        **{name: layer.drafter for name, layer in MTP_LAYERS.items()},
        "LlamaForCausalLM": None,
    }


CLASSES = """
import json, sys
from specpipe.stages.target.vllm.support.aux_interface import gives_aux_states
from vllm.model_executor.models.registry import ModelRegistry
classes = {name: ModelRegistry._try_load_model_cls(name) for name in sys.argv[1:]}
print(json.dumps({name: gives_aux_states(found) for name, found in classes.items()}))
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_the_source_says_what_the_classes_are() -> None:
    package = installed()
    names = [
        *FAMILIES,
        *("LlamaForCausalLM", "Qwen2ForCausalLM", "Phi3ForCausalLM", "GptOssForCausalLM"),
        *(
            "MiMoForCausalLM",
            "DeepseekV3ForCausalLM",
            "Olmo2ForCausalLM",
            "OPTForCausalLM",
            "Gemma4ForCausalLM",
        ),
    ]
    done = subprocess.run(
        [sys.executable, "-c", CLASSES, *names], capture_output=True, text=True, check=True
    )
    models = models_of(ModelSource(package))
    read = {name: "aux_states" in (readable_in(models, name) or []) for name in names}
    assert read == json.loads(done.stdout.splitlines()[-1])
    assert set(read.values()) == {True, False}


LOOPS = """
import importlib, inspect, json, pkgutil
from vllm.model_executor import models
from vllm.model_executor.models.interfaces import EagleModelMixin
found = set()
for name in (each.name for each in pkgutil.iter_modules(models.__path__)):
    try:
        module = importlib.import_module(f"{models.__name__}.{name}")
    except Exception:  # of a package that is not installed
        continue
    for one in vars(module).values():
        if isinstance(one, type) and EagleModelMixin in one.__mro__[1:]:
            text = inspect.getsource(one.forward)
            if "aux_hidden_states" not in text and "super().forward(" not in text:
                found.add(one.__name__)
print(json.dumps(sorted(found)))
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_models_that_have_the_interface_collect_states() -> None:
    """But for the decoders of those that serve MTP alone, and of drafters."""
    done = subprocess.run([sys.executable, "-c", LOOPS], capture_output=True, text=True, check=True)
    found = set(json.loads(done.stdout.splitlines()[-1]))
    drafters = {name for name in found if "Eagle" in name or "DFlash" in name}
    assert found - drafters == {name.replace("ForCausalLM", "Model") for name in FOR_MTP_ALONE}
