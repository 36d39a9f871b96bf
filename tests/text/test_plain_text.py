"""Texts without a chat template: their special tokens, and what is supervised of them."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from specpipe.schemas.errors import InputError
from specpipe.schemas.records.sample import Sample, Source
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.plain_text import text_sample
from specpipe.stages.text.prompts import read_prompts
from specpipe.stages.text.rejected import Rejections
from specpipe.stages.text.samples import iterate_samples
from tests.dump.conftest import Row, write_lines
from tests.text.chat_families import MISTRAL, PLAIN, save_family

SOURCE = Source("f", 1)


def bos_target(folder: Path, *, with_end: bool = False) -> Path:
    """A target whose tokenizer puts <s> before a text, and perhaps </s> after it."""
    save_family(folder, MISTRAL)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if with_end else "<s> $A",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sample_of(folder: Path, row: Row) -> tuple[Sample, PreTrainedTokenizerBase]:
    data = write_lines(folder / "data.jsonl", [row])
    template = ChatTemplate(folder)
    (sample,) = iterate_samples([str(data)], template, 10_000, 1000, Rejections(0))
    return sample, template.tokenizer


def prompt_of(folder: Path, row: Row) -> str:
    data = write_lines(folder / "data.jsonl", [row])
    template, settings = ChatTemplate(folder), GenerateConfig()
    (prompt,) = read_prompts([str(data)], template, 10_000, 1000, settings, Rejections(0))
    return str(template.tokenizer.decode(prompt.input_ids))


def split(folder: Path, row: Row) -> tuple[str, str]:
    """The text before the first supervised token, and the rest, all of which is supervised."""
    sample, tokenizer = sample_of(folder, row)
    first = int(sample.loss_mask.argmax())
    assert sample.loss_mask[first:].all()
    ids = sample.input_ids
    return str(tokenizer.decode(ids[:first])), str(tokenizer.decode(ids[first:]))


def test_plain_text_is_supervised_but_for_its_first_token(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_family(tmp_path, PLAIN))
    sample = text_sample({"text": "yo é"}, SOURCE, tokenizer, 10_000)
    assert tokenizer.decode(sample.input_ids) == "yo é"
    assert sample.loss_mask.tolist() == [0, 1, 1, 1, 1]
    with pytest.raises(InputError, match="f:1: no supervised token"):
        text_sample({"text": "y"}, SOURCE, tokenizer, 10_000)


@pytest.mark.parametrize("with_end", [False, True])
def test_a_text_with_its_own_bos_gets_no_second_one(tmp_path: Path, with_end: bool) -> None:
    folder = bos_target(tmp_path, with_end=with_end)
    end = "</s>" if with_end else ""
    for text in ("yo yo", "<s>yo yo", "yo<s>yo", "<s><s>yo"):
        expected = text if text.startswith("<s>") else f"<s>{text}"
        assert split(folder, {"text": text}) == ("<s>", expected.removeprefix("<s>") + end)
        assert prompt_of(folder, {"text": text}) == expected
        assert prompt_of(folder, {"prompt": text}) == expected


@pytest.mark.parametrize("with_end", [False, True])
def test_only_the_completion_is_supervised_with_its_end(tmp_path: Path, with_end: bool) -> None:
    folder = bos_target(tmp_path, with_end=with_end)
    for prompt in ("2+2 is", "<s>2+2 is"):
        for completion in (" 4", " 4</s>"):
            row: dict[str, Any] = {"prompt": prompt, "completion": completion}
            assert split(folder, row) == ("<s>2+2 is", " 4</s>")
            assert prompt_of(folder, row) == "<s>2+2 is"


def test_a_token_across_the_boundary_belongs_to_the_completion(tmp_path: Path) -> None:
    folder = save_family(tmp_path, PLAIN, "merging")
    assert split(folder, {"prompt": "so ", "completion": "yo"})[1].startswith(" yo")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "'prompt' is there without 'completion'; `specpipe dump --gen"),
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "a", "completion": ["b"]}, "'completion' must be a string"),
        ({"text": 3}, "'text' must be a string"),
    ],
)
def test_refused_texts(tmp_path: Path, row: Row, message: str) -> None:
    with pytest.raises(InputError, match=rf"data\.jsonl:1: {message}"):
        sample_of(save_family(tmp_path, PLAIN), row)
