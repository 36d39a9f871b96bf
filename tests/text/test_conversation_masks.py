"""Masks by markers and by render boundaries agree; what cannot be told is refused or recorded."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.stages.text.chat.messages import conversation_of
from specpipe.stages.text.conversation import ChatTemplate, LossMask
from specpipe.stages.text.rejected import Rejections
from tests.dump.conftest import Row
from tests.text.chat_families import (
    DEEPSEEK,
    FAMILIES,
    MISTRAL,
    PLAIN,
    QWEN,
    TOKENIZERS,
    Family,
    chat,
    save_family,
)
from tests.text.test_conversation_families import (
    CALL,
    RESULT,
    SOURCE,
    SYSTEM,
    TOOL,
    TWO,
    pieces,
    said,
)

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"


def mask(template: ChatTemplate, row: Row) -> list[int]:
    rejections = Rejections(0)
    sample = template.sample(row, SOURCE, 10_000, rejections)
    assert not rejections.of_input
    return [int(bit) for bit in sample.loss_mask]


def test_masks_of_the_sample_data_agree() -> None:
    marked = ChatTemplate(SAMPLE_DATA / "target", loss_mask="markers")
    bounded = ChatTemplate(SAMPLE_DATA / "target", loss_mask="boundaries")
    lines = (SAMPLE_DATA / "train" / "conversations.jsonl").read_text().splitlines()
    assert len(lines) > 100
    for row in map(json.loads, lines):
        assert mask(marked, row) == mask(bounded, row)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ChatTemplate, ...]]:
    """For each family: by its markers, and by the boundaries of the same template without."""

    def load(family: Family, tokenizer: str, loss_mask: LossMask) -> ChatTemplate:
        text = family.template if loss_mask == "markers" else family.unmarked
        folder = save_family(tmp_path_factory.mktemp("family"), family, tokenizer, template=text)
        return ChatTemplate(folder, loss_mask=loss_mask)

    names = list(TOKENIZERS)
    return {
        name: (
            load(family, names[at % len(names)], "markers"),
            load(family, names[at % len(names)], "boundaries"),
        )
        for at, (name, family) in enumerate(FAMILIES.items())
    }


# Few words, so that a turn often is the end of another, or stands in a question.
WORDS = st.lists(st.sampled_from(["yo", "y", "hello", " ", "\n", ":", "é", "7"]), max_size=4)
TEXTS = WORDS.map("".join)
SPOKEN = TEXTS.filter(lambda text: bool(text.strip()))


@st.composite
def conversations(draw: st.DrawFn) -> list[Row]:
    messages = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(TEXTS)})
        messages.append({"role": "assistant", "content": draw(SPOKEN)})
        if draw(st.booleans()):
            messages[-1]["reasoning"] = draw(SPOKEN)
    return messages


THINKING = ("qwen", "forced thinking", "opened thinking", "glm", "harmony")


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(messages=conversations())
def test_markers_and_boundaries_give_the_same_mask(
    templates: dict[str, tuple[ChatTemplate, ...]], name: str, messages: list[Row]
) -> None:
    marked, bounded = templates[name]
    if "reasoning" in messages[-1] and name not in THINKING:
        del messages[-1]["reasoning"]  # Such a template has no place for it, which is refused.
    row = {"messages": messages}
    expected = mask(marked, row)
    assert mask(bounded, row) == expected
    # An engine is given the prompt, and what follows it in the text is what it writes.
    checked = conversation_of(row, SOURCE).messages
    text, prompt = marked.render(checked), marked.render(checked[:-1], add_generation_prompt=True)
    if text.startswith(prompt):
        offsets = marked.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        last = [start for (start, stop), bit in zip(offsets, expected, strict=True) if bit]
        first = next(at for at, (_, stop) in enumerate(offsets) if stop > len(prompt))
        assert expected[first] == 1
        assert expected[first - 1] == 0 or name == "harmony"
        assert last[-1] >= len(prompt)


def test_a_token_across_the_boundary_is_supervised(tmp_path: Path) -> None:
    """` y` is one token here, of whose characters the prompt holds the first."""
    for loss_mask, template in (("markers", PLAIN.template), ("boundaries", PLAIN.unmarked)):
        folder = save_family(tmp_path, PLAIN, "merging", template=template)
        found = pieces(folder, chat("yo", "yo", "yes", "hell"), loss_mask=loss_mask)  # type: ignore[arg-type]
        assert found == [" yo\n", "hell\n"]


def test_arguments_as_text_and_as_objects_are_one_sample(tmp_path: Path) -> None:
    function = {"name": "f", "arguments": {"a": "é"}}
    forms: list[Row] = [
        CALL,
        {**CALL, "tool_calls": [{"function": function}]},
        {**CALL, "tool_calls": [function]},
        {"role": "assistant", "tool_calls": CALL["tool_calls"]},
    ]
    for family, tools in ((QWEN, [TOOL]), (DEEPSEEK, None)):
        printed = family.template.replace("c.function.name", "(c.function or c).name")
        printed = printed.replace("c.function.arguments", "(c.function or c).arguments")
        folder = save_family(tmp_path / family.special[0].strip("<|>"), family, template=printed)
        found = [pieces(folder, [*chat("hi"), form], tools) for form in forms]
        assert found[1:] == found[:-1]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (
            PLAIN.unmarked,
            [*chat("hi"), CALL, RESULT, said("7")],
            r"leaves tool_calls\[0\] of messages\[1\] \(role 'assistant'\) out",
        ),
        (
            PLAIN.unmarked.replace(
                "{{ m.content }}",
                "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}"
                "{{ c.function.arguments.a + '' }}{% endfor %}",
            ),
            [*chat("hi"), CALL],
            "as Python does",
        ),
        (
            PLAIN.unmarked,
            chat("hi", said("yo", "hm")),
            r"leaves the reasoning of messages\[1\] out",
        ),
        (
            DEEPSEEK.unmarked,
            chat("hi", "<think>hm</think>yo"),
            r"leaves the content of messages\[1\] out, or a part of it",
        ),
        (MISTRAL.unmarked, chat("hi", "yo", said("again")), "roles must alternate"),
        (
            "{% for m in messages %}{{ m.role }} {{ loop.length }}: {{ m.content }}\n{% endfor %}",
            chat("hi", "yo", "so", "yes")[:3],
            r"does not write messages\[1\] in the whole conversation",
        ),
    ],
)
def test_what_a_template_cannot_say_is_refused(
    tmp_path: Path, template: str, messages: list[Row], message: str
) -> None:
    family = MISTRAL if "[INST]" in template else DEEPSEEK if "<|User|>" in template else PLAIN
    folder = save_family(tmp_path, family, template=template)
    with pytest.raises(InputError, match=rf"data\.jsonl:1: .*{message}"):
        pieces(folder, messages)


def test_a_turn_that_is_written_otherwise_is_not_supervised(tmp_path: Path) -> None:
    shortened = PLAIN.unmarked.replace(
        "{{ m.content }}\n", "{{ m.content if loop.last or m.role == 'user' else m.content[:2] }}\n"
    )
    folder = save_family(tmp_path, PLAIN, template=shortened)
    assert pieces(folder, chat("hi", "hello", "so", "yes"), num_masked=1) == ["yes\n"]


@pytest.mark.parametrize(
    "around",
    [
        "{% macro say(m) %}BODY{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
        "{% for m in messages %}{% set text %}BODY{% endset %}{{ text }}{% endfor %}",
        "{% for m in messages %}{% filter upper %}BODY{% endfilter %}{% endfor %}",
    ],
)
def test_markers_whose_places_cannot_be_told_are_not_used(tmp_path: Path, around: str) -> None:
    body = "{{ m.role }}: {% generation %}{{ m.content }}\n{% endgeneration %}"
    template = around.replace("BODY", body) + "{% if add_generation_prompt %}assistant: {% endif %}"
    template = template.replace("{{ m.role }}", "{{ m.role | upper }}").replace(
        "assistant: {%", "ASSISTANT: {%"
    )
    folder = save_family(tmp_path, PLAIN, template=template)
    with pytest.raises(ConfigError, match="markers inside a macro"):
        pieces(folder, chat("HI", "YO"), loss_mask="markers")
    assert pieces(folder, chat("HI", "YO", "SO", "YES"), loss_mask="auto") == ["YO\n", "YES\n"]


def test_a_template_that_is_none(tmp_path: Path) -> None:
    folder = save_family(tmp_path, PLAIN, template="\n{% if x %}{{ messages }}")
    with pytest.raises(ConfigError, match="the chat template is wrong: in line 2"):
        pieces(folder, TWO, loss_mask="auto")


def test_the_day_does_not_matter(tmp_path: Path) -> None:
    template = ChatTemplate(save_family(tmp_path, FAMILIES["llama3"]))
    assert "Today: 26 Jul 2024" in template.render([SYSTEM, *TWO])


def test_reasoning_in_any_field(tmp_path: Path) -> None:
    folder = save_family(tmp_path, QWEN)
    found = [
        pieces(folder, chat("hi", {"role": "assistant", "content": "yo", field: "hm"}))
        for field in ("reasoning_content", "reasoning", "thinking")
    ]
    assert found == [["<think>\nhm\n</think>\n\nyo<|im_end|>"]] * 3
