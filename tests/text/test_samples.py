"""Every damage of an input is a clear error that names file and line."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.records.sample import Sample, Source, is_held_out, make_sample
from specpipe.stages.text.conversation import ChatTemplate, LossMask
from specpipe.stages.text.rejected import Rejections, to_jsonl
from specpipe.stages.text.samples import read_samples

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
    target: Path,
    *urls: object,
    max_rejected: int = 0,
    context_length: int = 128,
    loss_mask: LossMask = "auto",
) -> tuple[list[Sample], Rejections]:
    rejections = Rejections(max_rejected)
    template = ChatTemplate(target, loss_mask=loss_mask)
    names = [str(url) for url in urls]
    return read_samples(names, template, VOCAB, context_length, rejections), rejections


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "a blank line"),
        ("   ", "a blank line"),
        ('{"input_ids": [1, 2', "malformed JSON"),
        ("[" * 100_000, "JSON that is nested deeper than 200"),
        ('{"input_ids": [' + "1" * 5000 + "]}", "malformed JSON"),
        (b'{"input_ids": "\xff"}', "not UTF-8"),
        ("[1, 2]", "a JSON list, not an object"),
        ("3", "a JSON int, not an object"),
        (
            '{"prompts": "a", "id": 3, "text": null}',
            "neither 'messages' .*but 'prompts', 'id'; rename",
        ),
        ("{}", "neither 'messages' nor .* but nothing"),
        ({**GOOD, **CHAT}, "both 'messages' and 'input_ids'"),
        ({**GOOD, "text": "plain"}, "both 'input_ids' and 'text'"),
        ('{"text": "plain"}', "has 'text' but the rows before have 'input_ids'"),
        ('{"input_ids": [NaN]}', "malformed JSON: NaN is no JSON number"),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
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
        ({"messages": [{"role": "user"}]}, r"messages\[0\] \(user\) has no 'content'"),
        (
            {"messages": [CHAT["messages"][0], {"role": "assistant", "contents": "yo"}]},
            r"messages\[1\] \(assistant\) has neither 'content' nor 'tool_calls'",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
            r"messages\[0\] \(assistant\) has neither",
        ),
        ({"messages": [{"role": "assistant", "content": 7}]}, r"messages\[0\]: 'content' must be"),
        ({"messages": [{"role": "assistant", "content": []}]}, r"messages\[0\]: 'content' must be"),
        ({"messages": [{"role": "assistant", "content": {"text": "yo"}}]}, "'content' must be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "url": "x"}]}]},
            r"messages\[0\]\.content\[0\] is of type 'image_url'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            r"messages\[0\]\.content\[0\]: 'text' must be a string",
        ),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, r"content\[0\] is of type 'hi'"),
        (
            {"messages": [{"role": "assistant", "tool_calls": ["f"]}]},
            r"messages\[0\]: 'tool_calls' must be a list of objects",
        ),
        ({"messages": CHAT["messages"][:1]}, "no supervised token.* `specpipe dump --generate`"),
        ({**CHAT, "tools": "calculator"}, "'tools': malformed JSON"),
        ({**CHAT, "tools": {"name": "f"}}, "'tools' must be a list of objects, or its JSON text"),
        ({**CHAT, "tools": ["[]"]}, r"'tools'\[0\] must be an object, or its JSON text"),
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
    with pytest.raises(InputError, match=r"no sample is left of .*: .*data\.jsonl:1: "):
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


def test_text_parts_are_one_text(target: Path, write_rows: Callable[..., Path]) -> None:
    parts = [{"type": "text", "text": "y"}, {"type": "text", "text": "o"}]
    split = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": parts}]}
    samples, _ = read(target, write_rows([CHAT, split]))
    assert [sample.multiplicity for sample in samples] == [2]


def test_a_call_of_tools_needs_no_content(
    target: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(target, tmp_path / "t"))
    template = folder / "chat_template.jinja"
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
    text = template.read_text()
    assert text.count("{% generation %}{{ m.content }}") == 1
    template.write_text(
        text.replace(
            "{% generation %}{{ m.content }}", "{% generation %}{{ m.content or '' }}" + calls
        )
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    turns = [CHAT["messages"][0], {"role": "assistant", "tool_calls": [call]}]
    ((sample,), _) = read(folder, write_rows([{"messages": turns}]))
    assert sample.num_supervised == len("add") + 1


def test_without_a_prompt_the_whole_sample_stands_for_it() -> None:
    """Or all samples of such data would be on one side of the held-out split."""

    def prompt_of(ids: list[int], *mask: int) -> tuple[str, str]:
        sample = make_sample(ids, mask, Source("f", 1), VOCAB)
        return sample.prompt_id, sample.sample_id

    for mask in [(1, 1, 1, 1), (0, 1, 1, 1), (1, 0, 0, 1)]:
        ids = [prompt_of([1, 5, 6, last], *mask) for last in range(40)]
        assert all(prompt_id == sample_id for prompt_id, sample_id in ids)
        sides = [is_held_out(prompt_id, 0.5) for prompt_id, _ in ids]
        assert 5 < sum(sides) < 35
    siblings = {prompt_of([1, 5, 6, last], 0, 0, 1, 1)[0] for last in range(40)}
    assert len(siblings) == 1


def test_templates_that_cannot_mark(
    tmp_path: Path, write_rows: Callable[..., Path], target: Path
) -> None:
    path = write_rows([CHAT])
    folder = Path(shutil.copytree(target, tmp_path / "t"))
    template = folder / "chat_template.jinja"
    marked = template.read_text()
    template.write_text(marked.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    with pytest.raises(ConfigError, match="does not mark what the assistant generates"):
        read(folder, path, loss_mask="markers")
    template.unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        read(folder, path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer files: conv"):
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


def zipped(name: str | None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        if name:
            archive.writestr(name, json.dumps(GOOD) + "\n")
    return file.getvalue()


TEXT = (json.dumps(GOOD) + "\n").encode() * 50
SOUND = {
    "gz": gzip.compress(TEXT),
    "bz2": bz2.compress(TEXT),
    "xz": lzma.compress(TEXT),
    "zip": zipped("data.jsonl"),
}


@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.parametrize("damage", ["another format", "half", "a byte"])
def test_damaged_compressed_files(target: Path, tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"data.jsonl.{suffix}"
    data = bytearray(SOUND[suffix])
    path.write_bytes(data)
    assert len(read(target, path)[0]) == 1
    if damage == "another format":
        data = bytearray(TEXT)
    elif damage == "half":
        del data[len(data) // 2 :]
    else:
        data[data.find(b"input_ids") if suffix == "zip" else len(data) // 2] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"data\.jsonl\.{suffix}: not a readable"):
        read(target, path, max_rejected=99)


def test_a_zip_without_a_file(target: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(zipped(None))
    with pytest.raises(InputError, match=r"data\.zip: not a readable zip file"):
        read(target, path)
