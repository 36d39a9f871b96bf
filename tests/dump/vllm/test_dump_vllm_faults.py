"""An engine of vLLM that dies, or cannot start, and options that it does not have."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.schemas.errors import ConfigError
from specpipe.stages.dump_plan.prepared import plan_of
from specpipe.stages.target.open_backend import choose_backend
from specpipe.stages.text.rejected import Rejections
from specpipe.stages.upkeep.verify.run import verify
from tests.architectures import build
from tests.dump.commands import Command, until
from tests.processes import children, kill, runs

# Before the import of a module that stops halfway without vLLM.
pytest.importorskip("vllm", reason="vLLM is not installed")
from tests.dump.vllm.test_dump_vllm import dump_config, rows

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    # Importing vLLM warns of what is deprecated in torch and in itself.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target") / "llama"
    build("llama", layers=5, dtype=torch.float32, head_dim=32).save_pretrained(folder)
    return folder


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return [*found, *(below for child in found for below in descendants(child))]


def test_an_engine_that_dies_is_said_and_the_next_run_completes(
    target: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    config = dump_config(target, write_rows(rows(400)), tmp_path / "dump", backend="vllm")
    command = Command(config, tmp_path / "killed")
    command.wait_for_shards(2)
    engine = descendants(command.process.pid)
    assert command.process.poll() is None, command.stderr
    assert len(engine) > 1
    kill(engine[-1])
    assert command.wait() == 5, command.stderr
    assert "engine died" in command.stderr
    assert "run the same command again to continue" in command.stderr
    until(lambda: not any(runs(pid) for pid in engine))
    before = command.num_shards()
    again = Command(config, tmp_path / "again")
    again.wait_for_shards(before + 1)
    # A command that is killed takes its engine with it.
    engine = descendants(again.process.pid)
    assert len(engine) > 1
    again.process.kill()
    again.process.wait()
    until(lambda: not any(runs(pid) for pid in engine))
    last = Command(config, tmp_path / "last")
    assert last.wait() == 0, last.stderr
    assert last.result["num_samples"] == 400
    report = verify(config.out)
    assert report.complete
    assert report.damages == ()


LATE = """
import signal, time

def late(number, handler, set_handler=signal.signal):
    if number == signal.SIGTERM and callable(handler):
        return set_handler(number, lambda *given: (time.sleep(6), handler(*given)))
    return set_handler(number, handler)

signal.signal = late
"""


def test_an_engine_that_ends_slowly_leaves_no_shared_memory(
    target: Path,
    tmp_path: Path,
    write_rows: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a busy machine; vLLM kills it after five seconds if left to itself."""
    from specpipe.stages.target.vllm.backend import VllmBackend

    (tmp_path / "sitecustomize.py").write_text(LATE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = dump_config(target, write_rows(rows(2)), tmp_path / "dump", backend="vllm")
    before = descendants(os.getpid())
    backend = VllmBackend(config, plan_of(config, target, Rejections(0))[1], 64)
    engine = [pid for pid in descendants(os.getpid()) if pid not in before]
    shared = {path for pid in engine for path in shared_memory(pid)}
    assert shared
    backend.close()
    assert [path for path in shared if Path(path).exists()] == []


def shared_memory(pid: int) -> list[str]:
    """The files of /dev/shm that a process has mapped and that have a name."""
    return re.findall(r"(/dev/shm/\S+)$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": {"max_num_batched_token": 5}}, "did you mean max_num_batched_tokens"),
        ({"engine": {"dtype": "float16"}}, "use --dtype"),
        ({"engine": {"enable_prefix_caching": True}}, "specpipe sets it itself"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"device": "cuda"}, "runs on cpu"),
        ({"backend": "hf", "engine": {"block_size": 32}}, "are vLLM's"),
    ],
)
def test_refused_before_anything_starts(
    target: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    config = dump_config(target, tmp_path / "data", tmp_path / "dump", backend="vllm")
    with pytest.raises(ConfigError, match=says):
        choose_backend(config.model_copy(update=changes))


def test_auto_takes_vllm_where_it_can_run_the_target(target: Path, tmp_path: Path) -> None:
    def chosen(folder: Path) -> str:
        return choose_backend(dump_config(folder, tmp_path / "data", tmp_path / "dump"))

    assert chosen(target) == "vllm"
    for name, head_dim in (("llama", 8), ("cohere", 32)):
        folder = tmp_path / f"{name}-{head_dim}"
        build(name, layers=4, head_dim=head_dim).save_pretrained(folder)
        assert chosen(folder) == "hf"
        with pytest.raises(ConfigError, match=r"--backend vllm: vLLM.*use --backend hf"):
            choose_backend(
                dump_config(folder, tmp_path / "data", tmp_path / "dump", backend="vllm")
            )


def test_options_that_change_the_states_are_part_of_the_identity(
    target: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    def identity(**engine: Any) -> str:
        config = dump_config(target, data, tmp_path / "dump", backend="vllm", engine=engine)
        return plan_of(config, target, Rejections(0))[1].fingerprint

    data = write_rows(rows(2))
    assert identity() == identity(max_num_seqs=3, tensor_parallel_size=2)
    assert identity() != identity(quantization="fp8")
