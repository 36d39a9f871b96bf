"""JSON of strangers: what is refused, by which error, and what is kept."""

import json

import pytest

from specpipe.schemas.errors import ConfigError, InputError, IntegrityError
from specpipe.stages.untrusted.json_text import parse_json, parse_object


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"a": 1} 2',
        b"\xff",
        b"[NaN]",
        b"[-Infinity]",
        b'["\\ud800"]',
        b"1" * 5000,
        nested(300).encode(),
        nested(100_000).encode(),
        b'{"a":' * 100_000,
    ],
    ids=lambda text: repr(text[:12]),
)
@pytest.mark.parametrize("refuse", [ConfigError, InputError, IntegrityError])
def test_what_is_no_json_is_refused_by_name(text: bytes, refuse: type[ConfigError]) -> None:
    with pytest.raises(refuse, match=r"^the file: ") as refused:
        parse_json(text, "the file", refuse)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_values_are_those_of_the_library() -> None:
    text = json.dumps({"a": [1, 2.5, None, True, "é\ud83d\ude00"], "b": {}})
    assert parse_json(text, "x") == json.loads(text)
    assert parse_json(b"\xef\xbb\xbf[1]", "x") == [1]
    assert parse_json(nested(200), "x") == json.loads(nested(200))


def test_infinity_is_kept_where_it_is_allowed() -> None:
    assert parse_json("[Infinity]", "x", allow_non_finite=True) == [float("inf")]


@pytest.mark.parametrize("text", ["[]", "1", "null", '"a"'])
def test_an_object_is_an_object(text: str) -> None:
    with pytest.raises(ConfigError, match="not an object"):
        parse_object(text, "x", ConfigError)
    assert parse_object('{"a": 1}', "x") == {"a": 1}
