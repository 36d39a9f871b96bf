"""What is supervised in the style of each family, worked out by hand: what an engine generates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpipe.schemas.records.sample import Source
from specpipe.stages.text.chat.messages import conversation_of
from specpipe.stages.text.conversation import ChatTemplate, LossMask
from specpipe.stages.text.dialogue import Dialogue
from specpipe.stages.text.rejected import Rejections
from tests.dump.conftest import Row
from tests.text.chat_families import (
    COMMAND_R,
    DEEPSEEK,
    FORCED_THINKING,
    GEMMA,
    GLM,
    HARMONY,
    LLAMA3,
    MISTRAL,
    OPENED_THINKING,
    PHI3,
    QWEN,
    Family,
    chat,
    save_family,
)

SYSTEM = {"role": "system", "content": "be brief"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    ],
}
RESULT = {"role": "tool", "content": "7", "tool_call_id": "a"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SOURCE = Source("data.jsonl", 1)


def said(content: str, reasoning: str | None = None, **more: Any) -> Row:
    message = {"role": "assistant", "content": content, **more}
    return message if reasoning is None else {**message, "reasoning": reasoning}


def pieces(
    folder: Path,
    messages: list[Row],
    tools: list[Row] | None = None,
    *,
    loss_mask: LossMask = "boundaries",
    num_masked: int = 0,
) -> list[str]:
    """The supervised pieces of the text."""
    template = ChatTemplate(folder, loss_mask=loss_mask)
    rejections = Rejections(0)
    row = {"messages": messages, "tools": tools}
    sample = template.sample(row, SOURCE, 10_000, rejections)
    assert [one.kind for one in rejections.of_input] == ["partly_masked"] * num_masked
    text = template.render(conversation_of(row, SOURCE).messages, tools)
    encoded = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == sample.input_ids.tolist()
    mask_T = np.concatenate([[0], sample.loss_mask.astype(np.int8), [0]])
    bounds = np.flatnonzero(np.diff(mask_T)).reshape(-1, 2)
    offsets = encoded["offset_mapping"]
    return [text[offsets[start][0] : offsets[stop - 1][1]] for start, stop in bounds]


def call_text(arguments: str) -> str:
    return f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call><|im_end|>'


TWO = chat("hi", "yo", "hello?", "yes")

CASES: dict[str, tuple[Family, list[Row], list[Row] | None, list[str]]] = {
    "llama3": (LLAMA3, [SYSTEM, *TWO], None, ["yo<|eot_id|>", "yes<|eot_id|>"]),
    "llama3 trims": (LLAMA3, chat("hi", " yo\n "), None, ["yo<|eot_id|>"]),
    "llama3 tools": (
        LLAMA3,
        [*chat("hi"), CALL, RESULT, said("7 it is")],
        [TOOL],
        ['{"name": "f", "parameters": {"a": "é"}}<|eot_id|>', "7 it is<|eot_id|>"],
    ),
    "qwen": (QWEN, [SYSTEM, *TWO], None, ["yo<|im_end|>", "yes<|im_end|>"]),
    "qwen drops earlier reasoning": (
        QWEN,
        chat("hi", said("yo", "hm"), {"role": "user", "content": "so"}, said("yes", "oh")),
        None,
        ["yo<|im_end|>", "<think>\noh\n</think>\n\nyes<|im_end|>"],
    ),
    "qwen keeps the reasoning of a chain of calls": (
        QWEN,
        [*chat("hi"), {**CALL, "thinking": "look"}, RESULT, said("7", "so")],
        [TOOL],
        [
            "<think>\nlook\n</think>\n\n" + call_text('{"a": "é"}'),
            "<think>\nso\n</think>\n\n7<|im_end|>",
        ],
    ),
    "qwen drops the reasoning of an earlier chain": (
        QWEN,
        [
            *chat("hi"),
            {**CALL, "reasoning": "look"},
            RESULT,
            said("7", "so"),
            {"role": "user", "content": "ok?"},
            said("yes", "sure"),
        ],
        [TOOL],
        [
            call_text('{"a": "é"}'),
            "7<|im_end|>",
            "<think>\nsure\n</think>\n\nyes<|im_end|>",
        ],
    ),
    "qwen says and calls": (
        QWEN,
        [*chat("hi"), {**CALL, "content": "wait"}],
        [TOOL],
        ["wait" + call_text('{"a": "é"}')],
    ),
    "qwen calls without arguments": (
        QWEN,
        [*chat("hi"), {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}],
        [TOOL],
        [call_text("{}")],
    ),
    "forced thinking": (
        FORCED_THINKING,
        chat("hi", said("yo", "hm"), {"role": "user", "content": "so"}, said("yes", "oh")),
        None,
        ["yo<|im_end|>", "oh\n</think>\n\nyes<|im_end|>"],
    ),
    "opened thinking": (
        OPENED_THINKING,
        [SYSTEM, *TWO, *chat("so", said("1", "hm"))],
        None,
        ["yo<|im_end|>", "yes<|im_end|>", "hm\n</think>\n\n1<|im_end|>"],
    ),
    "opened thinking, the same answer twice": (
        OPENED_THINKING,
        chat("hi", "yo", "so", "yo"),
        None,
        ["yo<|im_end|>", "\n</think>\n\nyo<|im_end|>"],
    ),
    "opened thinking, the same answer thrice": (
        OPENED_THINKING,
        chat("hi", "<yo", "<yo", "<yo", "so", "<yo"),
        None,
        ["<yo<|im_end|>", "<yo<|im_end|>", "\n</think>\n\n<yo<|im_end|>"],
    ),
    "opened thinking, an earlier chain of calls": (
        OPENED_THINKING,
        [
            *chat("hi"),
            {**CALL, "reasoning": "look"},
            RESULT,
            said("7", "so"),
            *chat("hi"),
            {**CALL, "reasoning": "look"},
            RESULT,
            said("7"),
        ],
        [TOOL],
        [
            call_text('{"a": "é"}'),
            "7<|im_end|>",
            "look\n</think>\n\n" + call_text('{"a": "é"}'),
            "\n</think>\n\n7<|im_end|>",
        ],
    ),
    "glm": (
        GLM,
        [SYSTEM, *TWO, *chat("so", said("1", "hm"))],
        None,
        [
            "\n<think></think>\nyo<|user|>",
            "\n<think></think>\nyes<|user|>",
            "\n<think>hm</think>\n1",
        ],
    ),
    "glm tools": (
        GLM,
        [*chat("hi"), CALL, RESULT, said("7")],
        None,
        [
            '\n<think></think>\n\n<tool_call>f\n{"a": "é"}\n</tool_call><|observation|>',
            "\n<think></think>\n7",
        ],
    ),
    "mistral": (MISTRAL, TWO, None, [" yo</s>", " yes</s>"]),
    "mistral, system in the last question": (
        MISTRAL,
        [SYSTEM, *TWO, *chat("yo", "yo")],
        None,
        [" yo</s>", " yes</s>", " yo</s>"],
    ),
    "gemma": (GEMMA, [SYSTEM, *TWO], None, ["yo<end_of_turn>", "yes<end_of_turn>"]),
    "phi3": (PHI3, [SYSTEM, *TWO], None, ["yo<|end|>", "yes<|end|>"]),
    "command-r": (
        COMMAND_R,
        [SYSTEM, *TWO],
        None,
        ["yo<|END_OF_TURN_TOKEN|>", "yes<|END_OF_TURN_TOKEN|>"],
    ),
    "deepseek": (DEEPSEEK, [SYSTEM, *TWO], None, ["yo<|end|>", "yes<|end|>"]),
    "deepseek tools": (
        DEEPSEEK,
        [*chat("hi"), CALL, RESULT, said("7")],
        None,
        ['<|tool_calls|>f\n{"a": "é"}<|tool_calls_end|><|end|>', "7<|end|>"],
    ),
    "harmony": (
        HARMONY,
        chat("hi", said("yo", "hm"), {"role": "user", "content": "so"}, said("yes", "oh")),
        None,
        [
            "<|channel|>final<|message|>yo",
            "<|channel|>analysis<|message|>oh<|end|>"
            "<|start|>assistant<|channel|>final<|message|>yes<|return|>",
        ],
    ),
    "harmony tools": (
        HARMONY,
        [*chat("hi"), CALL, RESULT, said("7")],
        [TOOL],
        [
            ' to=functions.f<|channel|>commentary json<|message|>{"a": "é"}<|call|>',
            "<|channel|>final<|message|>7<|return|>",
        ],
    ),
    "an engine stops at once": (QWEN, chat("hi", ""), None, ["<|im_end|>"]),
    "an answer that ends in white space": (QWEN, chat("hi", "yo \n"), None, ["yo \n<|im_end|>"]),
    "an answer that holds the end": (
        QWEN,
        chat("hi", "yo<|im_end|>", "so", "yes"),
        None,
        ["yo<|im_end|>", "yes<|im_end|>"],
    ),
    "the same answer again": (
        MISTRAL,
        [SYSTEM, *chat("yo", "yo", " yo", "yo", "yo</s>", "yo")],
        None,
        [" yo</s>", " yo</s>", " yo</s>"],
    ),
    "two turns in a row": (
        QWEN,
        chat("hi", said("yo"), said("and hello")),
        None,
        ["yo<|im_end|>", "and hello<|im_end|>"],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokenizer", ["bytes", "metaspace", "prepended"])
@pytest.mark.parametrize("loss_mask", ["markers", "boundaries"])
def test_supervised_is_what_an_engine_generates(
    tmp_path: Path, name: str, tokenizer: str, loss_mask: LossMask
) -> None:
    family, messages, tools, expected = CASES[name]
    template = family.template if loss_mask == "markers" else family.unmarked
    folder = save_family(tmp_path, family, tokenizer, template=template)
    found = pieces(folder, messages, tools, loss_mask=loss_mask)
    assert found == expected


def test_variables_of_the_template(tmp_path: Path) -> None:
    """Those of a row win over the setting, and reach the prompts, too."""
    quiet = OPENED_THINKING.unmarked.replace(
        "<think>\n{% endif %}",
        "<think>\n{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '\n</think>\n\n' }}{% endif %}{% endif %}",
    )
    assert quiet != OPENED_THINKING.unmarked
    folder = save_family(tmp_path, OPENED_THINKING, template=quiet)
    row = {"messages": TWO, "chat_template_kwargs": {"enable_thinking": True}}
    assert pieces(folder, TWO)[-1] == "\n</think>\n\nyes<|im_end|>"
    template = ChatTemplate(folder, settings={"enable_thinking": False})
    found = [
        template.tokenizer.decode(sample.input_ids[sample.loss_mask == 1])
        for sample in (
            template.sample(given, SOURCE, 10_000, Rejections(0))
            for given in ({"messages": TWO}, row)
        )
    ]
    assert found == ["yo<|im_end|>yes<|im_end|>", "yo<|im_end|>\n</think>\n\nyes<|im_end|>"]
    for settings, end in (
        (None, "<think>\n\n</think>\n\n"),
        ({"enable_thinking": True}, "<think>\n"),
    ):
        prompt = template.render(TWO[:1], None, settings, add_generation_prompt=True)
        assert prompt.endswith("assistant\n" + end)
    dialogue = Dialogue.of(conversation_of(row, SOURCE))
    again = Dialogue.of_metadata(dialogue.metadata)
    assert again.prompt(template).endswith("assistant\n<think>\n")
