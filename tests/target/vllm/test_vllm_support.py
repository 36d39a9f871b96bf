"""What is said of a target that vLLM cannot dump."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specpipe.stages.target.vllm.support.runnable import why_not


class OfStates:
    def set_aux_hidden_state_layers(self, layers: tuple[int, ...]) -> None: ...


def test_a_model_that_vllm_cannot_load_here_is_not_said_to_give_no_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrappers want torchvision, which vLLM for CPUs comes without."""

    def load() -> type:
        raise ModuleNotFoundError("No module named 'torchvision'")

    models = {
        "Loads": SimpleNamespace(load_model_cls=lambda: object),
        "Wrapper": SimpleNamespace(load_model_cls=load),
    }
    stubs: dict[str, dict[str, Any]] = {
        "vllm.platforms": {"current_platform": SimpleNamespace(device_type="cpu")},
        "vllm.model_executor.models.interfaces": {"OfStates": OfStates},
        "vllm.model_executor.models.registry": {
            "ModelRegistry": SimpleNamespace(models=models, get_supported_archs=models.keys)
        },
    }
    for name, names in stubs.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**names))
    told = {}
    for name in ("Loads", "Wrapper", "Other"):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
        told[name] = why_not(tmp_path, "cpu")
    assert told == {
        "Loads": "vLLM gives no hidden states of Loads",
        "Wrapper": "vLLM cannot load its Wrapper here (ModuleNotFoundError: No module named "
        "'torchvision')",
        "Other": "vLLM does not know Other",
    }
