"""The prompts that `serve` decodes: those of a dump's held-out samples, or of a file.

A prompt is what stands before the first supervised token.
"""

import json
from collections.abc import Iterator
from typing import Any

import fsspec
from transformers import AutoTokenizer

from specpipe.schemas.errors import InputError
from specpipe.schemas.sample import Source, first_supervised, sample_from_pretokenized
from specpipe.stages.drafter.sample_reader import SampleRef
from specpipe.stages.storage.dump import Dump

Prompt = tuple[int, ...]


def from_dump(dump: Dump, refs: list[SampleRef]) -> Iterator[Prompt]:
    """Prompts of these samples, in their order."""
    stored = {shard: dump.shard(shard).samples() for shard in {ref.shard_id for ref in refs}}
    for ref in refs:
        sample = stored[ref.shard_id][ref.index]
        yield tuple(sample.input_ids[: first_supervised(sample.loss_mask)].tolist())


def from_file(url: str, target: str, vocab_size: int) -> Iterator[Prompt]:
    """Prompts of a JSONL file of `messages` (up to the first answer) or pretokenised samples."""
    tokenizer: Any = None
    with fsspec.open(url, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            source = Source(url, number)
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{source}: not a line of JSON ({error})") from None
            if "messages" in row:
                tokenizer = tokenizer or AutoTokenizer.from_pretrained(target)
                yield tuple(_chat_prompt(tokenizer, row["messages"], source))
            else:
                sample = sample_from_pretokenized(row, source, vocab_size)
                yield tuple(sample.input_ids[: first_supervised(sample.loss_mask)].tolist())


def choose(prompts: Iterator[Prompt], most: int, longest: int) -> list[Prompt]:
    """The first `most` different prompts of 1 to `longest` tokens."""
    chosen: dict[Prompt, None] = {}
    for prompt in prompts:
        if 0 < len(prompt) <= longest:
            chosen[prompt] = None
        if len(chosen) == most:
            break
    return list(chosen)


def _chat_prompt(tokenizer: Any, messages: list[dict[str, Any]], source: Source) -> list[int]:
    roles = [message.get("role") for message in messages]
    if "assistant" not in roles:
        raise InputError(f"{source}: no assistant message, so there is no prompt to answer")
    ids: list[int] = tokenizer.apply_chat_template(
        messages[: roles.index("assistant")], add_generation_prompt=True, return_dict=False
    )
    return ids
