"""The forms in which data sets keep conversations, each read as the messages it stands for."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import Source
from specpipe.stages.text.chat.messages import Conversation, conversation_of
from specpipe.stages.text.input.rows import read_rows
from specpipe.stages.text.rejected import Rejections
from tests.dump.conftest import Row, write_lines

SOURCE = Source("f", 1)
ASK, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CHAT: list[Row] = [ASK, ANSWER]
TOOL: Row = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"properties": {"a": {"enum": ["x", None], "default": None}}},
    },
}


def read(**row: Any) -> Conversation:
    return conversation_of(row, SOURCE)


def in_parquet(path: Path, **columns: Any) -> Conversation:
    pq.write_table(pa.table({name: [value] for name, value in columns.items()}), path)
    ((source, row),) = read_rows([str(path)], Rejections(0))
    return conversation_of(row, source)


@pytest.mark.parametrize("calls", [None, []])
def test_keys_without_a_value_are_not_there(calls: object, tmp_path: Path) -> None:
    """Exports of Arrow data give every message every key."""
    padded = [
        {**ASK, "name": None, "tool_calls": calls},
        {**ANSWER, "tool_calls": calls, "reasoning": None, "extra": {"a": None, "b": [None]}},
    ]
    expected = [ASK, {**ANSWER, "extra": {"b": [None]}}]
    assert read(messages=padded).messages == expected
    assert in_parquet(tmp_path / "text.parquet", messages=json.dumps(padded)).messages == expected
    columns = [{**message, "tool_calls": calls} for message in CHAT]
    type_ = pa.list_(
        pa.struct(
            {"role": pa.string(), "content": pa.string(), "tool_calls": pa.list_(pa.string())}
        )
    )
    array = pa.array([columns], type_)
    pq.write_table(pa.table({"messages": array}), tmp_path / "a.parquet")
    ((source, row),) = read_rows([str(tmp_path / "a.parquet")], Rejections(0))
    assert conversation_of(row, source).messages == CHAT


def test_a_null_that_is_a_value_stays() -> None:
    arguments = {"unit": None, "in": {"a": None}}
    function = {"name": "f", "arguments": arguments, "strict": None}
    call = {"role": "assistant", "tool_calls": [{"index": None, "function": function}]}
    found = read(messages=[ASK, call], tools=[{**TOOL, "strict": None}])
    (kept,) = found.messages[1]["tool_calls"]
    assert kept == {"function": {"name": "f", "arguments": arguments}}
    assert found.tools == [TOOL]


@pytest.mark.parametrize("given", [{}, {"arguments": None}])
def test_a_call_without_arguments_has_none(given: Row) -> None:
    """Templates print null for them, or fail; engines make them an object."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", **given}}]}
    (kept,) = read(messages=[ASK, call]).messages[1]["tool_calls"]
    assert kept == {"function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize("given", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_as_objects_and_as_json_text(given: Any, tmp_path: Path) -> None:
    assert read(messages=CHAT, tools=given).tools == [TOOL]
    if given != [TOOL]:  # Arrow has no place for a null that is a value
        assert in_parquet(tmp_path / "a.parquet", messages=CHAT, tools=given).tools == [TOOL]
        path = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT, "tools": given}])
        ((source, row),) = read_rows([str(path)], Rejections(0))
        assert conversation_of(row, source).tools == [TOOL]


@pytest.mark.parametrize("given", [None, [], "", " ", "null", "[]"])
def test_no_tools(given: object) -> None:
    assert read(messages=CHAT, tools=given).tools is None


def test_settings_of_the_template(tmp_path: Path) -> None:
    settings = {"enable_thinking": False, "reasoning_effort": "low"}
    for given in (settings, json.dumps(settings)):
        assert read(messages=CHAT, chat_template_kwargs=given).template_settings == settings
        path = tmp_path / "a.parquet"
        found = in_parquet(path, messages=CHAT, chat_template_kwargs=given)
        assert found.template_settings == settings
    assert read(messages=CHAT).template_settings == {}
    assert read(messages=CHAT, chat_template_kwargs=None).template_settings == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "must be an object of template variables, or its JSON text"),
        ("[1]", "must be an object of template variables"),
        ("{", "malformed JSON"),
        ({"messages": []}, "'messages' is no variable that can be set"),
        ({"add_generation_prompt": True}, "'add_generation_prompt' is no variable"),
    ],
)
def test_settings_that_are_none(given: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^f:1: 'chat_template_kwargs':? {message}"):
        read(messages=CHAT, chat_template_kwargs=given)


def test_share_gpt() -> None:
    call = {"name": "f", "arguments": {"a": 1}}
    conversations = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "yo"},
    ]
    found = read(conversations=conversations, system="be brief", tools=json.dumps([TOOL]), id="x")
    assert found.messages == [
        {"role": "system", "content": "be brief"},
        ASK,
        {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "7"},
        ANSWER,
    ]
    assert found.tools == [TOOL]
    assert not found.context
    assert read(conversations=CHAT).messages == CHAT
    both = [{"from": "system", "value": "be brief"}, *CHAT]
    assert read(conversations=both, system="be brief").messages == found.messages[:1] + CHAT
    assert read(conversations=CHAT, system="").messages == CHAT


def test_a_share_gpt_row_that_begins_in_the_middle() -> None:
    """Its first question was cut off: nothing in serving is like an answer to nothing."""
    system = {"from": "system", "value": "be brief"}
    late = [{"from": "gpt", "value": "so"}, {"from": "human", "value": "hi"}, ANSWER]
    for conversations in (late, [system, *late]):
        found = read(conversations=conversations)
        assert found.messages[-2:] == CHAT
        assert (len(found.messages), found.num_left_out) == (len(conversations) - 1, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": []}, "'conversations' must be a list of messages"),
        ({"conversations": "hi"}, "'conversations' must be a list of messages"),
        ({"conversations": [ANSWER]}, "'conversations' holds no question"),
        ({"conversations": [{"value": "hi"}]}, r"conversations\[0\] must be an object with a 'rol"),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\] \(user\) has no 'content'"),
        ({"conversations": CHAT, "system": 3}, "'system' must be a string"),
        (
            {"conversations": [{"role": "system", "content": "a"}, *CHAT], "system": "b"},
            "'system' and 'conversations' give different system prompts",
        ),
        (
            {"conversations": [ASK, {"from": "function_call", "value": "f(1)"}]},
            r"conversations\[1\]\.value: malformed JSON",
        ),
        (
            {"conversations": [ASK, {"from": "function_call", "value": "[]"}]},
            r"conversations\[1\]: 'value' must be the JSON text of a call",
        ),
        ({"prompt": []}, "'prompt' must be a list of messages"),
        ({"prompt": 3}, "'prompt' must be a list of messages"),
        ({"prompt": [ASK], "completion": []}, "'completion' must be a list of messages"),
        ({"prompt": CHAT, "completion": [ANSWER]}, r"prompt\[1\] is the assistant's"),
        ({"messages": [ASK, {**ANSWER, "weight": 0.5}]}, r"messages\[1\]: 'weight' is 0.5; it"),
        ({"messages": [ASK, {**ANSWER, "weight": True}]}, r"messages\[1\]: 'weight' is True; it"),
        ({"messages": [ASK, {**ANSWER, "weight": "1"}]}, r"messages\[1\]: 'weight' is '1'; it"),
    ],
)
def test_refused_forms(row: Row, message: str) -> None:
    with pytest.raises(InputError, match=f"^f:1: {message}"):
        conversation_of(row, SOURCE)


def test_a_prompt_of_messages_is_context() -> None:
    prompt = [*CHAT, {"role": "user", "content": "so"}]
    found = read(prompt=prompt, completion=[ANSWER])
    assert found.messages == [*prompt, ANSWER]
    assert found.context == {0, 1, 2}
    assert read(prompt=prompt, completion="yo") == found
    assert read(prompt=prompt).messages == prompt


def test_weights() -> None:
    weighed = [ASK, {**ANSWER, "weight": 0}, {**ASK, "weight": 1.0}, {**ANSWER, "weight": None}]
    found = read(messages=weighed)
    assert found.messages == CHAT * 2
    assert found.context == {1}


@pytest.mark.parametrize("role", ["User", "human", " HUMAN", "user"])
def test_spellings_of_the_user(role: str) -> None:
    assert read(messages=[{**ASK, "role": role}, ANSWER]).messages == CHAT


@pytest.mark.parametrize("role", ["Assistant", "gpt", "model", "bot", "ChatGPT", "ai", "chatbot"])
def test_spellings_of_the_assistant(role: str) -> None:
    assert read(messages=[ASK, {**ANSWER, "role": role}]).messages == CHAT
    assert read(conversations=[ASK, {"from": role, "value": "yo"}]).messages == CHAT
