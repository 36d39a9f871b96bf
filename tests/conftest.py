"""All tests run torch on one thread and leave no engine's variables; any test may use the local S3
server; without vLLM its own are skipped; the files that take longest come first."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.s3 import s3_root, s3_server, s3_session

__all__ = ["s3_root", "s3_server", "s3_session"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _longest_first(items)
    if find_spec("vllm") is None:
        _skip_engines(items)


def _longest_first(items: list[pytest.Item]) -> None:
    """Files with engines, then those with slow tests: a long file that began last would be waited
    for by one process alone."""
    weight: dict[Path, int] = {}
    for item in items:
        marks = [item.get_closest_marker(name) is not None for name in ("slow", "vllm")]
        weight[item.path] = max(weight.get(item.path, 0), marks[0] + 2 * marks[1])
    items.sort(key=lambda item: -weight[item.path])


def _skip_engines(items: list[pytest.Item]) -> None:
    """Skip what needs an engine where none can be had, as beside PyPI's own build of torch."""
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: threads that wait for each other cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def engine_variables() -> Iterator[None]:
    """An engine that is started in the tests' process sets variables for its children: the next
    file's children shall not see them."""
    before = _engine_variables()
    yield
    for name in _engine_variables().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _engine_variables() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(("SPECPIPE_", "VLLM_"))}
