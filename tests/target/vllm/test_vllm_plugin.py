"""Our plugin for vLLM: it acts where it is asked to, and on nothing else."""

import json
import subprocess
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.errors import StoreError
from specpipe.stages.target.vllm import shared_memory
from specpipe.stages.target.vllm.support.aux_state_models import NotOfThisForm, collecting
from specpipe.stages.validate.serve import engine


class Decoder:
    """In the form of vLLM's, on numbers; each layer adds its own to the stream."""

    start_layer, end_layer = 0, 4
    layers = (1, 2, 3, 4)
    wanted: tuple[int, ...] = ()

    def forward(self, hidden_states: int) -> Any:
        residual = None
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden_states, residual = layer, hidden_states + (residual or 0)
        hidden_states = hidden_states + (residual or 0)
        return hidden_states

    def no_loop(self, hidden_states: int) -> int:
        return hidden_states

    def _maybe_add_hidden_state(
        self, caught: list[int], layer_id: int, hidden_states: int, residual: int | None
    ) -> None:
        if layer_id in self.wanted:
            caught.append(hidden_states + (residual or 0))


def test_a_decoder_returns_what_enters_the_layers_asked_for() -> None:
    decoder = Decoder()
    whole = collecting(Decoder.forward, has_residual=True)
    assert whole(decoder, 10) == decoder.forward(10) == 20
    decoder.wanted = (0, 2, 4)
    assert whole(decoder, 10) == (20, [10, 13, 20])
    # Of a family whose layers pass the whole stream on, `residual` is no part of it.
    stream = collecting(Decoder.forward, has_residual=False)
    assert stream(decoder, 10) == (20, [10, 2, 4])


def test_a_model_of_another_form_is_left_alone() -> None:
    with pytest.raises(NotOfThisForm, match=r"Decoder\.no_loop"):
        collecting(Decoder.no_loop, has_residual=True)


REGISTERED = """
import json, os
from vllm.model_executor.models.registry import ModelRegistry
from vllm.plugins import load_general_plugins
from specpipe.stages.target.vllm import plugin
from specpipe.stages.target.vllm.support import families

def ours():
    models = ModelRegistry.models
    return [name for name in families.FAMILIES if "specpipe" in str(models[name])]

before = dict(ModelRegistry.models)
load_general_plugins()  # As each of vLLM's processes does, with nothing asked for.
found = {"nothing": ours(), "unchanged": ModelRegistry.models == before}
os.environ[families.ENVIRONMENT] = "1"
plugin.is_tested = lambda *_: False
plugin.register()
found["untested"] = ours()
plugin.is_tested = lambda *_: True
os.environ[families.ENVIRONMENT] = "Gemma3ForCausalLM,LlamaForCausalLM"
plugin.register()
found["one"] = ours()
found["others"] = [n for n in before if ModelRegistry.models[n] != before[n]]
from vllm.model_executor.models import gemma2, gemma3
from vllm.model_executor.models.interfaces import EagleModelMixin, supports_eagle3
found["served"] = supports_eagle3(ModelRegistry._try_load_model_cls("Gemma3ForCausalLM"))
found["decoders"] = [
    issubclass(gemma3.Gemma3Model, EagleModelMixin), issubclass(gemma2.Gemma2Model, EagleModelMixin)
]
os.environ[families.ENVIRONMENT] = "1"
plugin.register()
found["all"] = ours()
found["all_served"] = [
    name for name in families.FAMILIES
    if supports_eagle3(ModelRegistry._try_load_model_cls(name))
]
print(json.dumps(found))
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_stays_as_it_is_but_for_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from specpipe.stages.target.vllm.support.families import ENVIRONMENT, FAMILIES

    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    done = subprocess.run(
        [sys.executable, "-c", REGISTERED], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["nothing"] == []
    assert found["unchanged"]
    assert found["untested"] == []
    assert "specpipe stays out" in done.stdout + done.stderr
    assert found["one"] == found["others"] == ["Gemma3ForCausalLM"]
    assert found["served"]
    assert found["decoders"] == [True, False]
    assert found["all"] == found["all_served"] == list(FAMILIES)


def test_too_little_shared_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 6 with what to do, in place of vLLM's failure."""
    assert shared_memory.shortage() is None or "make it larger" in str(shared_memory.shortage())
    monkeypatch.setenv("VLLM_MQ_MAX_CHUNK_BYTES_MB", str(10**9))
    reason = str(shared_memory.shortage())
    assert "vLLM needs 10000000000 MiB of /dev/shm" in reason
    assert "--shm-size=1g" in reason
    monkeypatch.setattr(engine, "find_spec", lambda _name: object())
    # As an engine ends for which there is too little.
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho Insufficient space in /dev/shm\nexit 1\n", encoding="utf-8")
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    request = engine.EngineRequest(
        target="/nowhere", artifact=None, prompts=[[1]], max_tokens=1, temperatures=[0.0], seed=0
    )
    with pytest.raises(StoreError, match=r"vLLM failed .*--shm-size=1g") as raised:
        engine.decode(request)
    assert raised.value.exit_code == 6
