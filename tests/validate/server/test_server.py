"""A server that somebody else has started: what it counts, and what can be wrong with it."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError as BadConfig

from specpipe.schemas.errors import ConfigError, SpecpipeError, StoreError, ValidationError
from specpipe.schemas.settings.stages import ServerConfig, ValidateConfig
from specpipe.stages.acceptance.replay import ReplaySpan, expected_rounds
from specpipe.stages.target.files.location import TargetSource
from specpipe.stages.validate.server import client as server
from specpipe.stages.validate.server import run as server_check
from specpipe.stages.validate.server.client import Server
from tests.validate.server.stand_in_server import StandIn, stand_in

PROMPTS = [[3, 4, number] for number in range(40)]


@pytest.fixture
def says() -> Iterator[StandIn]:
    with stand_in() as says:
        yield says


def connect(says: StandIn) -> AbstractContextManager[Server]:
    return Server.connect(ServerConfig(serve_url=says.url + "/v1"))


def test_outputs_and_counters_by_group(says: StandIn) -> None:
    with connect(says) as ours:
        assert (ours.model, ours.longest, ours.version) == ("target", 64, "0.32.0")
        assert ours.num_draft_tokens == 2
        decoded = ours.decode(PROMPTS, 5, 1.0)
    assert decoded.output_ids == [[7] * 5] * len(PROMPTS)
    assert decoded.further_ids == [[7]] * len(PROMPTS)
    assert [group.prompts for group in decoded.groups] == [
        slice(at, at + 2) for at in range(0, len(PROMPTS), 2)
    ]
    for group in decoded.groups:
        assert group.counters.num_drafts == 10  # what was asked for beyond the end is not in it
        assert group.counters.accepted_per_position == [10, 0]
    first, further = says.bodies[:2]
    assert (first["prompt"], first["max_tokens"]) == (PROMPTS[:2], 5)
    assert (further["prompt"][0], further["max_tokens"]) == ([*PROMPTS[0], *[7] * 5], 1)
    # What a target's generation_config may set otherwise.
    assert (first["temperature"], first["top_p"], first["top_k"]) == (1.0, 1.0, 0)
    assert first["repetition_penalty"] == 1.0
    assert first["ignore_eos"] is True


@given(st.data())
def test_counters_are_those_of_rounds_that_begin_before_the_end(data: st.DataObject) -> None:
    """A naive walk through an output, as the engine counts, and the replay of the longer text."""
    num_drafts = data.draw(st.integers(1, 4))
    num_tokens = data.draw(st.integers(2, 12))
    longer = num_tokens + num_drafts - 1
    bits = st.lists(st.booleans(), min_size=num_drafts, max_size=num_drafts)
    accept = np.array(
        data.draw(st.lists(bits, min_size=longer - 1, max_size=longer - 1)), dtype=float
    ).reshape(longer - 1, num_drafts)
    rounds, accepted, start = 0, np.zeros(num_drafts), 0
    while start + 1 < num_tokens:  # the output is not whole yet
        rounds += 1
        count = 0
        while count < num_drafts and accept[start, count]:
            accepted[count] += 1
            count += 1
        start += count + 1
    found = expected_rounds([ReplaySpan(accept, longer, 0)], num_drafts)
    assert found.rounds_B.tolist() == [rounds]
    assert found.accepted_BK.tolist() == [accepted.tolist()]


def nobody_listens(says: StandIn) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        says.url = f"http://127.0.0.1:{free.getsockname()[1]}"


WRONG: dict[str, tuple[Callable[[StandIn], object], type[SpecpipeError], str]] = {
    "nobody listens": (nobody_listens, StoreError, "cannot be reached"),
    "a token is wanted": (
        lambda says: setattr(says, "token", "sesame"),
        ConfigError,
        "set SPECPIPE_SERVE_TOKEN",
    ),
    "another program": (
        lambda says: says.answers.update({"/v1/models": (200, "<html>")}),
        ConfigError,
        "does not answer in JSON: is it a vLLM server",
    ),
    "a proxy's answer": (
        lambda says: says.answers.update({"/v1/models": (404, "no such route")}),
        ConfigError,
        "answers 404: no such route",
    ),
    "a server that fails": (
        lambda says: says.answers.update({"/v1/completions": (500, "engine is dead")}),
        StoreError,
        "answers 500: engine is dead",
    ),
    "a server that dies meanwhile": (
        lambda says: setattr(says, "dies", True),
        StoreError,
        "/v1/completions cannot be reached",
    ),
    "no models": (
        lambda says: says.answers.update({"/v1/models": (200, "{}")}),
        ConfigError,
        "lists no model",
    ),
    "two models": (
        lambda says: says.models.append({"id": "other"}),
        ConfigError,
        "serves target, other: give --serve-model",
    ),
    "no counters": (
        lambda says: says.answers.update({"/metrics": (200, "up 1\n")}),
        ConfigError,
        "no counters of vLLM",
    ),
    "counters of another format": (
        lambda says: says.answers.update({"/metrics": (200, "{}{}\n")}),
        ConfigError,
        "not in Prometheus' format",
    ),
    "no drafter": (
        lambda says: setattr(says, "speculates", False),
        ConfigError,
        "start it with --speculative-config",
    ),
    "other users": (
        lambda says: setattr(says, "foreign_tokens", 3),
        ConfigError,
        r"served other requests meanwhile \(13 tokens where 10",
    ),
    "several servers": (
        lambda says: setattr(says, "uncounted", True),
        ConfigError,
        "several servers behind one address",
    ),
    "rounds that are cut short": (
        lambda says: setattr(says, "drafts_per_round", 1),
        ConfigError,
        "drafted 10 tokens in 10 rounds, not 2 in each",
    ),
    "outputs that end early": (
        lambda says: setattr(says, "missing_tokens", 1),
        ValidationError,
        r"asked for 5 tokens .* \[4, 4\]",
    ),
    "answers without ids": (
        lambda says: says.answers.update({"/v1/completions": (200, '{"choices": [{"index": 0}]}')}),
        ConfigError,
        "does not answer with token ids",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_server_is_said(
    says: StandIn, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it, error, words = WRONG[wrong]
    monkeypatch.setattr(server, "COUNT_SECONDS", 0.2)
    monkeypatch.delenv(server.TOKEN, raising=False)
    break_it(says)
    with pytest.raises(error, match=words), connect(says) as ours:
        ours.decode(PROMPTS, 5, 0.0)


def test_the_token_comes_from_the_environment(
    says: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    says.token = "sesame"
    for right in ("sesame", "sesame\n"):
        monkeypatch.setenv(server.TOKEN, right)
        with connect(says) as ours:
            assert ours.num_draft_tokens == 2
    monkeypatch.setenv(server.TOKEN, "open")
    with pytest.raises(ConfigError) as refused, connect(says):
        pass
    assert "open" not in str(refused.value)


@pytest.mark.parametrize("token", ["sesame\nopen", "s\u00e9same"])
def test_a_token_that_no_header_holds_is_not_shown(
    says: StandIn, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv(server.TOKEN, token)
    with pytest.raises(ConfigError, match="SPECPIPE_SERVE_TOKEN") as refused, connect(says):
        pass
    assert "same" not in str(refused.value)


def test_texts_that_the_server_cannot_hold(says: StandIn, tmp_path: Path) -> None:
    config = ServerConfig(serve_url=says.url, serve_max_tokens=57)
    with pytest.raises(ConfigError, match=r"takes 64 tokens at most: .* are 65"):
        server_check.check(tmp_path, TargetSource("target"), PROMPTS, config, lambda _: None)
    assert says.bodies == []


@pytest.mark.parametrize(
    "url", ["host:8000", "file:///etc", "http://me:secret@host", "http://host/?key=secret"]
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(BadConfig, match=r"SPECPIPE_SERVE_TOKEN"):
        ServerConfig(serve_url=url)


def test_a_server_that_no_level_asks_for() -> None:
    with pytest.raises(BadConfig, match="name it in validation"):
        ValidateConfig(artifact="a", dump="d", serve_url="http://host:8000")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"serve_model": "m"}, "serve_model needs serve_url"),
        ({"serve_draft_sample_method": "greedy"}, "serve_draft_sample_method needs serve_url"),
        ({"serve_url": "http://h", "serve_speculative_tokens": (5,)}, "is the server's own"),
        ({"serve_url": "http://h", "serve_batch_sizes": (4,)}, "serve_batch_sizes is the server's"),
        ({"serve_url": "http://h", "seed": 1}, "seed is the server's own"),
    ],
)
def test_settings_that_would_do_nothing(settings: dict[str, object], words: str) -> None:
    given_levels = {"artifact": "a", "dump": "d", "validation": ("structure", "serve")}
    with pytest.raises(BadConfig, match=words):
        ValidateConfig.model_validate({**given_levels, **settings})


def test_settings_of_a_server_are_read_back() -> None:
    config = ValidateConfig(
        artifact="a", dump="d", validation=("serve",), serve_url="http://h", serve_model="m"
    )
    assert ValidateConfig.model_validate_json(config.model_dump_json()) == config
