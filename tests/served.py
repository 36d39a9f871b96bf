"""A real engine without a drafter says the same again: who asks it the same shares its answer."""

from collections.abc import Iterator

import pytest

from specpipe.stages.validate.serve import run as serve
from specpipe.stages.validate.serve.engine import EngineRequest, EngineResult, decode

_ANSWERS: dict[str, EngineResult] = {}


@pytest.fixture(autouse=True, scope="session")
def one_engine_without_a_drafter() -> Iterator[None]:
    """Import it into a conftest: its answers are shared by all of them."""

    def decode_once(request: EngineRequest) -> EngineResult:
        if request.artifact is not None:
            return decode(request)
        key = request.model_dump_json()
        if key not in _ANSWERS:
            _ANSWERS[key] = decode(request)
        return _ANSWERS[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "decode", decode_once)
        yield
