"""Questions to the sample target, and what a dump holds of its answers."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.samples import StoredSample
from specpipe.stages.storage.shard.states import SampleStates
from tests.dump.conftest import small_config, write_lines

SAMPLE_DATA = Path(__file__).parents[3] / "sample_data"
TARGET = SAMPLE_DATA / "target"
END = 2
"""The sample target's end token."""

Row = dict[str, Any]


def questions(number: int) -> list[str]:
    """First messages of the sample conversations."""
    text = (SAMPLE_DATA / "train" / "conversations.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()[:number]]
    return [row["messages"][0]["content"] for row in rows]


def asked(*contents: str) -> Row:
    """A conversation of these questions, each but the last with an answer that is to be dropped."""
    messages = [{"role": "user", "content": contents[0]}]
    for content in contents[1:]:
        messages.append({"role": "assistant", "content": "Not what the target says."})
        messages.append({"role": "user", "content": content})
    return {"messages": messages}


def generate_config(folder: Path, rows: Sequence[Row], **changes: Any) -> DumpConfig:
    """A dump of several shards and batches; `generate` takes the settings of the generation."""
    data = write_lines(folder / "data.jsonl", rows)
    settings: dict[str, Any] = {
        "target": TARGET,
        "data": data,
        "out": folder / "dump",
        "dtype": "float32",
        "shard_tokens": 1500,
        "batch_tokens": 1000,
        "chunk_tokens": 256,
        "context_length": 512,
    }
    generate = {"temperature": 0.0, "max_tokens": 24} | changes.pop("generate", {})
    return small_config(**(settings | {"generate": generate} | changes))


def other_target(folder: Path, **files: Any) -> Path:
    """The sample target with other settings: file names (`.` as `__`) and their contents."""
    shutil.copytree(TARGET, folder)
    for name, contents in files.items():
        text = contents if isinstance(contents, str) else json.dumps(contents)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def stored(url: str) -> list[tuple[StoredSample, SampleStates]]:
    """All samples of a dump with their states, by where they stood in the input."""
    dump = Dump.open(url)
    pairs = []
    for shard_id in dump.manifests:
        reader = dump.shard(shard_id)
        pairs += [(sample, reader.read_sample(sample)) for sample in reader.samples()]
    return sorted(pairs, key=lambda pair: (pair[0].source.line, pair[0].sample_id))


def samples(url: str) -> list[StoredSample]:
    return [sample for sample, _ in stored(url)]


def answer(sample: StoredSample) -> list[int]:
    """The supervised tokens."""
    ids: list[int] = sample.input_ids[sample.loss_mask == 1].tolist()
    return ids
