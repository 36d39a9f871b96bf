"""Nothing of a conversation is lost in its rendering without a word."""

from pathlib import Path

import pytest

from specpipe.schemas.errors import InputError
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.prompts import read_prompts
from specpipe.stages.text.rejected import Rejections
from tests.dump.conftest import Row, write_lines
from tests.text.chat_families import (
    LLAMA3,
    MISTRAL,
    OPENED_THINKING,
    PLAIN,
    QWEN,
    chat,
    save_family,
)
from tests.text.test_conversation_families import CALL, RESULT, SYSTEM, TOOL, pieces, said

USER = {"role": "user", "content": "hi"}
DEVELOPER = {"role": "developer", "content": "be kind"}
NO_TOOLS = OPENED_THINKING.unmarked.replace("if tools", "if false")
"""Four roles with a branch, no else."""


@pytest.mark.parametrize(
    ("messages", "tools", "left_out"),
    [
        (
            [{"role": "narrator", "content": "2+2?"}, said("4")],
            None,
            "messages[0] (role 'narrator')",
        ),
        (
            [USER, {"role": "function", "content": "4"}, said("4")],
            None,
            "messages[1] (role 'function')",
        ),
        # What is lost stands in the text all the same, as another's words.
        ([USER, {"role": "note", "content": "hi"}, said("hi")], None, "messages[1] (role 'note')"),
        ([USER, said("4")], [TOOL], "tools[0]"),
    ],
)
def test_what_the_template_drops_is_refused(
    tmp_path: Path, messages: list[Row], tools: list[Row] | None, left_out: str
) -> None:
    folder = save_family(tmp_path, OPENED_THINKING, template=NO_TOOLS)
    with pytest.raises(InputError) as refused:
        pieces(folder, messages, tools)
    assert f"data.jsonl:1: the chat template leaves {left_out} out" in str(refused.value)


def test_a_call_that_the_template_drops_is_refused(tmp_path: Path) -> None:
    calls = [{"function": {"name": name, "arguments": {"b": 1}}} for name in ("f", "g")]
    folder = save_family(tmp_path, LLAMA3)
    with pytest.raises(InputError, match=r"leaves tool_calls\[1\] of messages\[1\]"):
        pieces(folder, [USER, {**CALL, "tool_calls": calls}])


def test_what_the_template_drops_on_purpose_is_not_refused(tmp_path: Path) -> None:
    """Reasoning of earlier turns, words beside an earlier call, and white space."""
    silent = QWEN.unmarked.replace(
        "{{ m.content }}{% for", "{% if not m.tool_calls %}{{ m.content }}{% endif %}{% for"
    )
    assert silent != QWEN.unmarked
    folder = save_family(tmp_path, QWEN, template=silent)
    spoken = {**CALL, "content": "let me look", "reasoning": "hm"}
    found = pieces(
        folder,
        [
            {"role": "system", "content": " "},
            USER,
            spoken,
            RESULT,
            said(" 7", "so"),
            USER,
            said("ok"),
        ],
    )
    assert [piece[-15:] for piece in found] == ["call><|im_end|>", " 7<|im_end|>", "ok<|im_end|>"]
    with pytest.raises(InputError, match=r"leaves messages\[1\] \(role 'assistant'\) out"):
        pieces(folder, [USER, spoken])


def test_text_that_is_written_otherwise_is_not_lost(tmp_path: Path) -> None:
    shouting = QWEN.unmarked.replace(
        "\n{{ m.content }}<|im_end|>", "\n{{ m.content | upper }}<|im_end|>"
    )
    folder = save_family(tmp_path, QWEN, template=shouting)
    assert "<|im_start|>user\nHI<|im_end|>" in ChatTemplate(folder).render([USER])
    assert pieces(folder, [USER, said("yo")]) == ["yo<|im_end|>"]


def test_developer_is_system_where_the_template_does_not_know_it(tmp_path: Path) -> None:
    """As vLLM does it: one system message that comes first."""
    folder = save_family(tmp_path / "without", OPENED_THINKING)
    text = ChatTemplate(folder).render([SYSTEM, USER, DEVELOPER])
    assert (
        text
        == "<|im_start|>system\nbe brief\n\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    )
    unknown = [DEVELOPER, USER, DEVELOPER, {"role": "narrator", "content": "?"}, said("yo")]
    with pytest.raises(InputError, match=r"leaves messages\[3\] \(role 'narrator'\) out"):
        pieces(folder, unknown)
    known = OPENED_THINKING.template.replace("('user', 'system')", "('user', 'developer')")
    kept = ChatTemplate(save_family(tmp_path / "with", OPENED_THINKING, template=known))
    assert kept.render([DEVELOPER]) == "<|im_start|>developer\nbe kind<|im_end|>\n"


def test_content_in_parts(tmp_path: Path) -> None:
    """Some templates take nothing else."""
    loop = (
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
        "{% endif %}{% endfor %}{{ '' }}"
    )
    folder = save_family(tmp_path, PLAIN, template=PLAIN.unmarked.replace("{{ m.content }}", loop))
    for content in ("hi", [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]):
        assert pieces(folder, [{"role": "user", "content": content}, said("yo")]) == ["yo\n"]
    assert ChatTemplate(folder).render(chat("hi", "yo")) == "user: hi\nassistant: yo\n"


def test_a_template_that_refuses_text_is_not_given_parts_to_print(tmp_path: Path) -> None:
    folder = save_family(tmp_path, MISTRAL, template=MISTRAL.unmarked)
    with pytest.raises(InputError, match="roles must alternate"):
        pieces(folder, chat("hi", "yo", said("again")))
    strict = (
        "{% for m in messages %}{% if m.content is string %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    folder = save_family(tmp_path, PLAIN, template=strict)
    with pytest.raises(InputError, match="refuses it: no"):
        pieces(folder, chat("hi", "yo"))


def test_prompts_lose_nothing_either(tmp_path: Path) -> None:
    folder = save_family(tmp_path, OPENED_THINKING)
    rows = [
        {"messages": [USER]},
        {"messages": [{"role": "narrator", "content": "hi"}]},
        {"messages": [USER, said("a"), {"role": "narrator", "content": "hi"}, USER, said("b")]},
    ]
    data = write_lines(tmp_path / "data.jsonl", rows)
    rejections = Rejections(2)
    prompts = read_prompts(
        [str(data)], ChatTemplate(folder), 10_000, 100, GenerateConfig(), rejections
    )
    assert [prompt.source.line for prompt in prompts] == [1]
    assert [one.reason.split(": ")[1] for one in rejections.of_input] == [
        "the chat template leaves messages[0] (role 'narrator') out",
        "the chat template leaves messages[2] (role 'narrator') out",
    ]
