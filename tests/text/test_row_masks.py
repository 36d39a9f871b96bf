"""What is supervised of a conversation where the row says it, and what the target is asked."""

from pathlib import Path

import pytest

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.prompt import PromptSample
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.text.conversation import ChatTemplate, LossMask
from specpipe.stages.text.prompts import read_prompts
from specpipe.stages.text.rejected import Rejections
from specpipe.stages.text.samples import iterate_samples
from tests.dump.conftest import Row, write_lines
from tests.text.chat_families import PLAIN, QWEN, chat, save_family

FOUR = chat("hi", "yo", "so", "yes")
MASKS: tuple[LossMask, ...] = ("markers", "boundaries")


def supervised(
    folder: Path, row: Row, loss_mask: LossMask = "auto", rejections: Rejections | None = None
) -> list[str]:
    """The supervised pieces of the only row."""
    template = ChatTemplate(folder, loss_mask=loss_mask)
    data = write_lines(folder / "data.jsonl", [row])
    (sample,) = iterate_samples([str(data)], template, 10_000, 1000, rejections or Rejections(0))
    words = template.tokenizer.convert_ids_to_tokens(sample.input_ids.tolist())
    mask = sample.loss_mask.tolist()
    marked = "".join(word if bit else "\0" for word, bit in zip(words, mask, strict=True))
    return [piece for piece in marked.split("\0") if piece]


def asked(folder: Path, row: Row) -> tuple[str, PromptSample]:
    template = ChatTemplate(folder)
    data = write_lines(folder / "data.jsonl", [row])
    (prompt,) = read_prompts([str(data)], template, 10_000, 1000, GenerateConfig(), Rejections(0))
    return str(template.tokenizer.decode(prompt.input_ids)), prompt


@pytest.mark.parametrize("loss_mask", MASKS)
def test_an_answer_of_weight_0_is_masked(tmp_path: Path, loss_mask: LossMask) -> None:
    folder = save_family(tmp_path, QWEN)
    messages = [FOUR[0], {**FOUR[1], "weight": 0}, *FOUR[2:]]
    assert supervised(folder, {"messages": messages}, loss_mask) == ["yes<|im_end|>"]
    messages = [*FOUR[:3], {**FOUR[3], "weight": 0}]
    assert supervised(folder, {"messages": messages}, loss_mask) == ["yo<|im_end|>"]
    messages[1] = {**FOUR[1], "weight": 1}
    assert supervised(folder, {"messages": messages}, loss_mask) == ["yo<|im_end|>"]
    messages[1] = {**FOUR[1], "weight": 0}
    with pytest.raises(InputError, match="the assistant's messages have weight 0"):
        supervised(folder, {"messages": messages}, loss_mask)


def test_markers_that_do_not_tell_the_answers_apart(tmp_path: Path) -> None:
    """Boundaries do; markers alone are refused."""
    twice = QWEN.template.replace(
        "{{ m.content }}",
        "{{ m.content[:1] }}{% endgeneration %}{% generation %}{{ m.content[1:] }}",
        1,
    )
    folder = save_family(tmp_path, QWEN, template=twice)
    row = {"messages": [FOUR[0], {**FOUR[1], "weight": 0}, *FOUR[2:]]}
    assert supervised(folder, row, "auto") == ["yes<|im_end|>"]
    with pytest.raises(InputError, match=r"marks 4 pieces of 2 answers.*--loss-mask boundaries"):
        supervised(folder, row, "markers")


@pytest.mark.parametrize("loss_mask", MASKS)
def test_only_the_completion_of_a_prompt_of_messages(tmp_path: Path, loss_mask: LossMask) -> None:
    folder = save_family(tmp_path, QWEN)
    row = {"prompt": FOUR[:3], "completion": FOUR[3:]}
    assert supervised(folder, row, loss_mask) == ["yes<|im_end|>"]


def test_what_is_cut_off_is_left_out_and_told(tmp_path: Path) -> None:
    folder, rejections = save_family(tmp_path, QWEN), Rejections(0)
    row = {"conversations": [{"from": "gpt", "value": "late"}, *FOUR]}
    found = supervised(folder, row, "auto", rejections)
    assert found == ["yo<|im_end|>", "yes<|im_end|>"]
    (one,) = rejections.of_input
    assert one.kind == "partly_masked"
    assert "left out the first 1 messages, which answer what the row does not hold" in one.reason


def test_no_answer_names_the_roles(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "tool", "content": "yo"}]}
    with pytest.raises(InputError, match=r"no message has the role 'assistant'; .* 'user', 'tool'"):
        supervised(save_family(tmp_path, PLAIN), row)


def test_the_target_answers_the_prompt_alone(tmp_path: Path) -> None:
    """Earlier answers of a prompt, and those of weight 0 before a question, stay as they are."""
    folder = save_family(tmp_path, QWEN)
    expected, _ = asked(folder, {"prompt": FOUR[:3]})
    assert "yo<|im_end|>" in expected
    assert "yes" not in expected
    weighed = [FOUR[0], {**FOUR[1], "weight": 0}, *FOUR[2:]]
    for row in ({"prompt": FOUR[:3], "completion": FOUR[3:]}, {"messages": weighed}):
        text, prompt = asked(folder, row)
        assert (text, prompt.metadata) == (expected, {})
    text, prompt = asked(folder, {"messages": [*FOUR[:3], {**FOUR[3], "weight": 0}]})
    assert "yo" not in text
    assert len(prompt.metadata["dialogue"]["before_turns"]) == 2


def test_a_share_gpt_row_asks_its_questions(tmp_path: Path) -> None:
    folder = save_family(tmp_path, QWEN)
    said = [("gpt", "late"), ("human", "hi"), ("gpt", "yo"), ("human", "so")]
    row = {"conversations": [{"from": who, "value": value} for who, value in said]}
    _, prompt = asked(folder, row)
    assert prompt.metadata["dialogue"]["before_turns"] == [[FOUR[0]], [FOUR[2]]]


def test_a_role_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    """PLAIN writes any; a template that names one has it."""
    asked_by = {"messages": [{"role": "assistent", "content": "hi"}, *FOUR]}
    for template in (PLAIN.template, PLAIN.template + "{# assistents #}"):
        folder = save_family(tmp_path, PLAIN, template=template)
        with pytest.raises(InputError, match=r"messages\[0\] has the role 'assistent', which the"):
            supervised(folder, asked_by)
        with pytest.raises(InputError, match=r"messages\[0\] has the role 'assistent', which the"):
            asked(folder, asked_by)
    named = PLAIN.template + "{% if messages[0].role == 'critic' %}{% endif %}"
    folder = save_family(tmp_path, PLAIN, template=named)
    row = {"messages": [{"role": "critic", "content": "hi"}, *FOUR]}
    assert supervised(folder, row)[0].startswith("yo")
