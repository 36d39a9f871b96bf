"""A target whose only tokenizer is that of Mistral's own library."""

import base64
import json
from pathlib import Path

import pytest

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.sample import Source
from specpipe.stages.target.files.location import tokenizer_files
from specpipe.stages.text.conversation import ChatTemplate
from specpipe.stages.text.rejected import Rejections
from tests.text.chat_families import MISTRAL, chat

SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>")


def save_tekken(folder: Path) -> Path:
    """Every byte is a token, and two of them together."""
    pieces = [bytes([byte]) for byte in range(256)] + [b"yo"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(pieces)
    ]
    special = [
        {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(SPECIAL)
    ]
    config = {
        "pattern": r"[^\s]+|\s",
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(vocab) + len(special),
        "default_num_special_tokens": len(special),
        "version": "v7",
    }
    tekken = {"config": config, "vocab": vocab, "special_tokens": special}
    (folder / "tekken.json").write_text(json.dumps(tekken))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


def test_conversations_by_tekken_alone(tmp_path: Path) -> None:
    folder = save_tekken(tmp_path)
    assert [path.name for path in tokenizer_files(folder)] == ["tekken.json"]
    (folder / "chat_template.jinja").write_text(MISTRAL.unmarked)
    template = ChatTemplate(folder)
    row = {"messages": chat("hi", "yo é", "so", "yes")}
    sample = template.sample(row, Source("f", 1), 10_000, Rejections(0))
    supervised = sample.input_ids[sample.loss_mask == 1]
    assert template.tokenizer.decode(supervised) == " yo é</s> yes</s>"
    assert sample.input_ids[0] == 1
    assert len(SPECIAL) + 256 in supervised


def test_another_tokenizer_counts_first(tmp_path: Path) -> None:
    folder = save_tekken(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    assert [path.name for path in tokenizer_files(folder)] == ["tokenizer.json"]


def test_a_damaged_tekken_is_named(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot load its tokenizer"):
        ChatTemplate(tmp_path).render([])
