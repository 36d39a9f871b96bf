"""Prompts of a file: what is refused, and in which words."""

import gzip
import json
import shutil
from pathlib import Path

import fsspec
import pytest

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.settings.stages import ExportConfig
from specpipe.stages.export.run import run
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.validate.serve import prompts
from tests.validate.small import SAMPLE_DATA, Trained

ROW = {"input_ids": [3, 4, 5], "attention_mask": [1, 1, 1], "labels": [-100, -100, 5]}
TARGET = SAMPLE_DATA / "target"


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"null",
        b'"messages"',
        b"",
        b"{",
        b"\xff",
        b"{}",
        b'{"messages": 5}',
        b'{"messages": {"role": "assistant"}}',
        b'{"messages": [5]}',
        b'{"messages": []}',
        b'{"messages": [{"content": "no role"}, {"role": "assistant"}]}',
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + line + b"\n")
    source = prompts.from_file(str(path), TARGET, 4096)
    assert next(source) == (3, 4)
    with pytest.raises(InputError, match=r"data\.jsonl:2: "):
        list(source)


def test_messages_need_a_tokenizer_and_a_template(tmp_path: Path, trained: Trained) -> None:
    path = tmp_path / "data.jsonl"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"messages": messages}))
    assert next(prompts.from_file(str(path), TARGET, 4096))
    with pytest.raises(ConfigError, match="has no tokenizer files"):
        list(prompts.from_file(str(path), trained.target, 96))
    bare = Path(shutil.copytree(TARGET, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        list(prompts.from_file(str(path), bare, 4096))


def test_variables_of_the_template(tmp_path: Path) -> None:
    """As an engine is given them, and as a dump writes the same prompt."""
    folder = Path(shutil.copytree(TARGET, tmp_path / "target"))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ 'no' if think is defined and not think }}")
    path = tmp_path / "data.jsonl"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    own = {"messages": messages}
    rows = [own, {**own, "chat_template_kwargs": {"think": False}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = ChatTemplate(folder).tokenizer
    found = list(prompts.from_file(str(path), folder, 4096))
    plain, quiet = (tokenizer.decode(list(prompt)) for prompt in found)
    assert quiet == f"{plain}no"
    assert plain == ChatTemplate(folder).render(messages[:1], add_generation_prompt=True)
    path.write_text(json.dumps({**own, "chat_template_kwargs": {"messages": []}}))
    with pytest.raises(InputError, match=r"data\.jsonl:1: 'chat_template_kwargs' must be"):
        list(prompts.from_file(str(path), folder, 4096))


def test_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROW).encode()))
    assert list(prompts.from_file(str(path), TARGET, 4096)) == [(3, 4)]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match="truncated or damaged"):
        list(prompts.from_file(str(path), TARGET, 4096))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "completion": "b"}', "`specpipe prepare --out FILE.jsonl` makes"),
        ('{"messages": [ASK, ANSWER], "tools": "[{}]"}', "tools, or .*`specpipe prepare"),
        ('{"messages": [{"role": "user", "content": [{}]}, ANSWER]}', "no text; `specpipe prepare"),
        ("[1]", "--serve-data is JSONL"),
        ("PAR1", "--serve-data is JSONL"),
    ],
)
def test_another_form_says_what_is_wanted(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(line.replace("ASK", _said("user")).replace("ANSWER", _said("assistant")))
    with pytest.raises(InputError, match=rf"data\.jsonl:1: .*{message}"):
        list(prompts.from_file(str(path), TARGET, 4096))


def _said(role: str) -> str:
    return json.dumps({"role": role, "content": "a"})


@pytest.mark.parametrize("url", ["nope.jsonl", "", "nope://me:secret@host/x"])
def test_no_file(tmp_path: Path, url: str) -> None:
    where = url if "://" in url else str(tmp_path / url)
    with pytest.raises(ConfigError, match="serve data ") as caught:
        list(prompts.from_file(where, TARGET, 4096))
    assert "secret" not in str(caught.value)


def test_missing_file_is_found_before_anything_is_written(trained: Trained, tmp_path: Path) -> None:
    config = ExportConfig(
        checkpoint=str(trained.run),
        out=str(tmp_path / "out"),
        validation=("structure", "serve"),
        serve_data=str(tmp_path / "nope.jsonl"),
    )
    with pytest.raises(ConfigError, match=r"nope\.jsonl: no such file"):
        run(config)
    assert not (tmp_path / "out").exists()


def test_no_password_in_a_message() -> None:
    url = "memory://me:secret@host/prompts.jsonl"
    with fsspec.open(url, "wb") as file:
        file.write(b"5\n")
    with pytest.raises(InputError, match="memory://host/prompts") as caught:
        list(prompts.from_file(url, TARGET, 4096))
    assert "secret" not in str(caught.value)
