"""Every damage of an input is a clear error that names file and line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.sample import Sample
from specpipe.stages.dump.conversation import ChatTemplate
from specpipe.stages.dump.inputs import read_samples
from specpipe.stages.dump.rejected import Rejections, to_jsonl

VOCAB = 260
GOOD: dict[str, Any] = {
    "input_ids": [5, 6, 7, 8],
    "attention_mask": [1, 1, 1, 1],
    "labels": [-100, 6, 7, 8],
}
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
}


def read(
    target: Path, *urls: object, max_rejected: int = 0, context_length: int = 128
) -> tuple[list[Sample], Rejections]:
    rejections = Rejections(max_rejected)
    template = ChatTemplate(target)
    names = [str(url) for url in urls]
    return read_samples(names, template, VOCAB, context_length, rejections), rejections


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "a blank line"),
        ("   ", "a blank line"),
        ('{"input_ids": [1, 2', "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        (b'{"input_ids": "\xff"}', "not UTF-8"),
        ("[1, 2]", "a JSON list, not an object"),
        ("3", "a JSON int, not an object"),
        ('{"text": "plain"}', "neither 'messages' nor 'input_ids'"),
        ({**GOOD, **CHAT}, "both 'messages' and 'input_ids'"),
        (CHAT, "the rows before have 'input_ids'"),
        ({**GOOD, "labels": None}, "'labels' is missing"),
        ({**GOOD, "input_ids": [5, 6, 7]}, "equally long"),
        ({**GOOD, "input_ids": [5, 6.5, 7, 8]}, "list of integers"),
        ({**GOOD, "attention_mask": [1, 0, 1, 1]}, "has a hole"),
        ({**GOOD, "labels": [-100, 7, 8, 8]}, r"labels\[1\] is 7 but input_ids\[1\] is 6"),
        ({**GOOD, "labels": [-100] * 4}, "no supervised token"),
        (
            {"input_ids": [5, 260], "attention_mask": [1, 1], "labels": [-100, 260]},
            "outside the target's vocabulary of 260",
        ),
        (
            {"input_ids": [5, -1], "attention_mask": [1, 1], "labels": [-100, -1]},
            "outside the target's vocabulary",
        ),
    ],
)
def test_damaged_lines(
    target: Path, write_rows: Callable[..., Path], line: object, message: str
) -> None:
    path = write_rows([GOOD, line])
    with pytest.raises(InputError, match=rf"data\.jsonl:2: .*{message}") as caught:
        read(target, path)
    assert caught.value.exit_code == 3
    samples, rejections = read(target, path, max_rejected=1)
    assert len(samples) == 1
    (rejected,) = [json.loads(x) for x in to_jsonl(rejections.of_input).splitlines()]
    assert rejected["source"] == {"file": str(path), "line": 2}
    assert rejected["kind"] == "refused"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "list of messages"),
        ({"messages": "hi"}, "list of messages"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": "hi"}]}, "with a 'role'"),
        ({"messages": [{"role": "alien", "content": "hi"}]}, "no alien"),
        ({"messages": [{"role": "user"}]}, "no supervised token"),
        ({"messages": CHAT["messages"][:1]}, "no supervised token"),
        ({**CHAT, "tools": "calculator"}, "'tools' must be a list"),
    ],
)
def test_damaged_conversations(
    target: Path, write_rows: Callable[..., Path], row: object, message: str
) -> None:
    with pytest.raises(InputError, match=rf"data\.jsonl:1: .*{message}"):
        read(target, write_rows([row]))


def test_files_that_are_not_there(target: Path, tmp_path: Path) -> None:
    for url, message in [
        (tmp_path / "no.jsonl", "no such file"),
        (tmp_path / "*.parquet", "nothing matches"),
        (tmp_path, "a folder"),
        ("nosuch://x", "nosuch"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read(target, url)


def test_an_empty_file_stops_the_run(target: Path, write_rows: Callable[..., Path]) -> None:
    good, empty = write_rows([GOOD], "good.jsonl"), write_rows([], "empty.jsonl")
    with pytest.raises(InputError, match=r"empty\.jsonl: the file is empty"):
        read(target, good, empty, max_rejected=9)


def test_nothing_is_left(target: Path, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="no sample is left"):
        read(target, write_rows([GOOD]), context_length=1)


def test_too_many_refusals_name_the_first(target: Path, write_rows: Callable[..., Path]) -> None:
    path = write_rows([GOOD, "{", GOOD, "[]", "{"])
    with pytest.raises(InputError, match=r"more than 2 inputs refused.*jsonl:2: .*jsonl:4: "):
        read(target, path, max_rejected=2)
    read(target, path, max_rejected=3)


def test_a_conversation_is_masked_by_the_templates_markers(
    target: Path, write_rows: Callable[..., Path]
) -> None:
    row = {"messages": [*CHAT["messages"], {"role": "user", "content": "é"}, CHAT["messages"][1]]}
    ((sample,), _) = read(target, write_rows([row]))
    #         <user> h  i <end> <assistant> y o <end> <user> 2 bytes <end> <assistant> y o <end>
    expected = [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]
    assert sample.loss_mask.tolist() == expected
    assert sample.input_ids[:1].tolist() == [1]
    assert sample.input_ids[[3, 7, 11, 15]].tolist() == [3] * 4


def test_templates_that_cannot_mark(
    tmp_path: Path, write_rows: Callable[..., Path], target: Path
) -> None:
    import shutil

    path = write_rows([CHAT])
    folder = Path(shutil.copytree(target, tmp_path / "t"))
    template = folder / "chat_template.jinja"
    marked = template.read_text()
    template.write_text(marked.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    with pytest.raises(ConfigError, match="does not mark what the assistant generates"):
        read(folder, path)
    template.unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        read(folder, path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer files"):
        read(folder, path)
    assert len(read(folder, write_rows([GOOD]))[0]) == 1


def test_truncation_is_recorded(target: Path, write_rows: Callable[..., Path]) -> None:
    late = {**GOOD, "labels": [-100, -100, -100, 8]}
    samples, rejections = read(target, write_rows([GOOD, late]), context_length=3)
    assert [sample.input_ids.tolist() for sample in samples] == [[5, 6, 7]]
    assert [(r.kind, r.source.line) for r in rejections.of_input] == [
        ("truncated", 1),
        ("left_out", 2),
    ]
    assert "nothing supervised is left" in rejections.of_input[1].reason


def test_duplicates_add_to_the_multiplicity(target: Path, write_rows: Callable[..., Path]) -> None:
    other_mask = {**GOOD, "labels": [-100, -100, 7, 8]}
    padded = {
        "input_ids": [0, *GOOD["input_ids"], 0],
        "attention_mask": [0, 1, 1, 1, 1, 0],
        "labels": [-100, *GOOD["labels"], -100],
    }
    samples, _ = read(target, write_rows([GOOD, other_mask, padded, GOOD]))
    assert [sample.multiplicity for sample in samples] == [3, 1]
    assert samples[0].source.line == 1


def test_globs_memory_urls_and_gzip(target: Path, write_rows: Callable[..., Path]) -> None:
    second = {**GOOD, "input_ids": [9, 6, 7, 8]}
    folder = write_rows([GOOD], "b.jsonl").parent
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(second).encode() + b"\n"))
    samples, _ = read(target, folder / "*.jsonl*")
    assert [int(sample.input_ids[0]) for sample in samples] == [9, 5]
    with fsspec.open("memory://inputs/c.jsonl", "w") as file:
        file.write(json.dumps(GOOD))
    samples, _ = read(target, "memory://inputs/c.jsonl")
    assert np.array_equal(samples[0].input_ids, GOOD["input_ids"])
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
    with pytest.raises(InputError, match="truncated or damaged"):
        read(target, folder / "d.jsonl.gz", max_rejected=99)
