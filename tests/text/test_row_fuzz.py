"""Rows that are mutated at random: a sample, or an error of the tree that names file and line."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specpipe.schemas.errors import InputError
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.prompts import read_prompts
from specpipe.stages.text.rejected import Rejections
from specpipe.stages.text.samples import iterate_samples
from tests.dump.conftest import Row
from tests.text.chat_families import QWEN, chat, save_family

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
LONG = [*chat("hi"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "7"}]
SOUND: list[Row] = [
    {"messages": chat("hi", "yo", "so", "yes"), "tools": [TOOL], "chat_template_kwargs": {"a": 1}},
    {"messages": [*LONG, {"role": "assistant", "content": "yo", "reasoning": "hm", "weight": 1}]},
    {
        "conversations": [
            {"from": "human", "value": "hi"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "7"},
            {"from": "gpt", "value": "yo"},
        ],
        "system": "be brief",
        "tools": json.dumps([TOOL]),
    },
    {"prompt": chat("hi", "yo", "so"), "completion": chat("hi", "yo")[1:]},
    {"prompt": "hi", "completion": "yo"},
    {"text": "yo yo"},
    {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 6, 7]},
]
ODD: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.sampled_from(["", "user", "gpt", "[]", "{}", "null", "[null]", '{"a": ', "\x00", "\x1b[2J"]),
    st.lists(st.none() | st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["role", "from", "type", "text", ""]), st.none(), max_size=3),
)


@st.composite
def mutated(draw: st.DrawFn) -> Row:
    """A sound row in which a few values, keys or entries are others, missing or doubled."""
    row = json.loads(json.dumps(draw(st.sampled_from(SOUND))))
    for _ in range(draw(st.integers(1, 3))):
        spot: Any = row
        while True:
            places = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not places:
                break
            at = draw(st.sampled_from(places))
            if isinstance(spot[at], dict | list) and spot[at] and draw(st.integers(0, 3)):
                spot = spot[at]
                continue
            what = draw(st.sampled_from(["other", "gone", "again"]))
            if what == "gone":
                del spot[at]
            elif what == "other":
                spot[at] = draw(ODD)
            elif isinstance(spot, list):
                spot.append(spot[at])
            else:
                spot[draw(st.text(max_size=4))] = spot[at]
            break
    return dict(row)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    return ChatTemplate(save_family(tmp_path_factory.mktemp("fuzz"), QWEN))


def read(path: Path, template: ChatTemplate) -> int:
    """Reads the file as given text and as prompts; how many of the two went well."""
    data, errors = [str(path)], []
    try:
        list(iterate_samples(data, template, 10_000, 1000, Rejections(0)))
    except InputError as error:
        errors.append(str(error))
    try:
        read_prompts(data, template, 10_000, 1000, GenerateConfig(), Rejections(0))
    except InputError as error:
        errors.append(str(error))
    assert all(error.startswith(f"{path}:") for error in errors), errors
    return 2 - len(errors)


def test_sound_rows_are_read(tmp_path: Path, template: ChatTemplate) -> None:
    for row in SOUND:
        if row is SOUND[1]:
            continue  # A dialogue has no calls of the data's assistant.
        (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
        expected = 1 if "conversations" in row else 2
        assert read(tmp_path / "data.jsonl", template) == expected


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(row=mutated())
def test_mutated_lines(tmp_path: Path, template: ChatTemplate, row: Row) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n")
    read(path, template)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(row=mutated())
def test_mutated_parquet(tmp_path: Path, template: ChatTemplate, row: Row) -> None:
    path = tmp_path / "data.parquet"
    try:
        pq.write_table(pa.Table.from_pylist([row]), path)
    except (pa.ArrowException, OverflowError, TypeError):
        return  # Arrow has no column for such values.
    read(path, template)
