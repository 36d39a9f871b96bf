"""All tests run torch on one thread; any test may use the local S3 server."""

from collections.abc import Iterator

import pytest
import torch

from tests.s3 import s3_root, s3_server, s3_session

__all__ = ["s3_root", "s3_server", "s3_session"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: threads that wait for each other cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
