"""A tiny random target with a byte tokenizer and a chat template, and inputs for it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specpipe.schemas.settings.stages import DumpConfig
from tests.tiny_llama import save_tiny_llama

SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
VOCAB = 256 + len(SPECIAL)
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no ' + m.role) }}{% endif %}"
    "<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}"
)

Row = dict[str, Any]


def save_target(folder: Path, seed: int = 0) -> Path:
    save_tiny_llama(folder, VOCAB, seed=seed, bos_token_id=1, eos_token_id=3)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: at for at, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", extra_special_tokens=list(SPECIAL[1:])
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="session")
def make_target(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_target(seed): another target of the same shape."""

    def make(seed: int) -> Path:
        return save_target(tmp_path_factory.mktemp("target"), seed)

    return make


@pytest.fixture
def make_rows() -> Callable[..., list[Row]]:
    """make_rows(number, seed=0)"""
    return rows


def rows(num: int, seed: int = 0, longest: int = 50) -> list[Row]:
    """Pretokenised rows with a prompt of 5 tokens and a hole in the supervision."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        ids = rng.integers(4, VOCAB, int(rng.integers(10, longest))).tolist()
        labels = [-100] * 5 + ids[5:]
        labels[7] = -100
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return made


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """write_rows(rows, name): a JSONL file; a str or bytes among the rows is written as it is."""

    def write(lines: Sequence[Row | str | bytes], name: str = "data.jsonl") -> Path:
        return write_lines(tmp_path / name, lines)

    return write


def write_lines(path: Path, lines: Sequence[Row | str | bytes]) -> Path:
    encoded = [
        line
        if isinstance(line, bytes)
        else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


@pytest.fixture
def make_config(target: Path, tmp_path: Path) -> Callable[..., DumpConfig]:
    """A configuration that makes several shards of several batches and chunks."""

    def make(data: Path, **changes: Any) -> DumpConfig:
        places: dict[str, Any] = {"target": target, "data": data, "out": tmp_path / "dump"}
        return small_config(**(places | changes))

    return make


def small_config(target: Path, data: Path, out: Path, **changes: Any) -> DumpConfig:
    settings: dict[str, Any] = {
        "target": str(target),
        "data": (str(data),),
        "out": str(out),
        "backend": "hf",
        "device": "cpu",
        "shard_tokens": 200,
        "batch_tokens": 120,
        "chunk_tokens": 64,
    }
    return DumpConfig(**(settings | changes))
