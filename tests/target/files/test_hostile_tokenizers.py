"""Tokenizers that cannot be loaded, or fail at a text, are one line of an error."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.errors import ConfigError, InputError, SpecpipeError
from specpipe.stages.target.files.tokenizer import encode, load_tokenizer
from specpipe.stages.target.files.turn_end import TurnEnd
from specpipe.stages.text.mask.tokens import TextTokens

SAMPLE = Path(__file__).parents[3] / "sample_data" / "target"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def weights(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name.endswith(".safetensors")]

    return Path(shutil.copytree(SAMPLE, tmp_path / "target", ignore=weights))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", ""),
        ("tokenizer.json", '{"model'),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"a":' * 100_000),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"a":' * 100_000),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["own.Own", null]}}'),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=f"target {folder}: transformers cannot load") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError):
        TurnEnd.of_target(folder, ["stop"])


def test_a_pattern_that_is_none(folder: Path) -> None:
    edit(folder / "tokenizer.json", pre_tokenizer=split("(("))
    with pytest.raises(ConfigError, match="cannot load its tokenizer"):
        load_tokenizer(folder)


def test_a_pattern_that_gives_up_at_a_text(folder: Path) -> None:
    edit(folder / "tokenizer.json", pre_tokenizer=split("(a+)+(?=b)$"))
    tokenizer = load_tokenizer(folder)
    assert encode(tokenizer, "short", add_special_tokens=False)["input_ids"]
    for call in (encode, TextTokens.of):
        with pytest.raises(
            InputError, match=r"tokenizer fails at this text: PanicException: .*limit"
        ):
            call(tokenizer, "a" * 40)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_damaged_generation_settings(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(SpecpipeError, match=r"generation_config\.json"):
        TurnEnd.of_target(folder, [])


def test_labels_without_end_take_no_memory(folder: Path) -> None:
    """transformers makes a name for each."""
    edit(folder / "config.json", num_labels=10**10)
    assert load_tokenizer(folder).vocab_size
