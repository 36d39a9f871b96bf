"""Generation through transformers, for many architectures: tokens and states are its own.

Prompts of several lengths share a batch, and layers with sliding windows forget their beginnings.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutput, CausalLMOutputWithPast

from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig, GenerateConfig
from specpipe.stages.process import activity
from specpipe.stages.target.backend import Generation, Prompt
from specpipe.stages.target.hf.backend import HfBackend, cache_of
from tests.architectures import VOCAB, build

NAMES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "granite", "cohere"]
NAMES += ["gpt_neox", "qwen3_moe", "mixtral", "olmoe"]
LENGTHS = (3, 26, 11, 1, 19)
MOST_TOKENS = (30, 12, 25, 30, 7)
GREEDY = GenerateConfig(temperature=0.0)


def open_backend(folder: Path, name: str, batch_tokens: int = 4096) -> HfBackend:
    build(name).save_pretrained(folder)
    config = DumpConfig(
        target=str(folder),
        data=("unused",),
        out="memory://unused",
        device="cpu",
        backend="hf",
        batch_tokens=batch_tokens,
    )
    return HfBackend(config, (1, 3, 5))


def prompts() -> list[Prompt]:
    rng = np.random.default_rng(3)
    return [
        Prompt(rng.integers(3, VOCAB, length).astype(np.int32), seed, most)
        for seed, (length, most) in enumerate(zip(LENGTHS, MOST_TOKENS, strict=True))
    ]


class Text:
    """Prompt and turn as a text that is given."""

    def __init__(self, prompt: Prompt, turn: Generation) -> None:
        self.input_ids = np.concatenate([prompt.input_ids, turn.new_ids])


def check_states(backend: HfBackend, given: Sequence[Prompt], turns: Sequence[Generation]) -> None:
    """The states are those of the whole text when it is given alone, in bfloat16."""
    for prompt, turn in zip(given, turns, strict=True):
        (alone,) = backend.capture_batch([Text(prompt, turn)])
        for ours, own in (
            (turn.states.aux_TLH, alone.aux_TLH),
            (turn.states.final_TH, alone.final_TH),
        ):
            assert ours.shape == own.shape
            torch.testing.assert_close(ours.float(), own.float(), rtol=2**-7, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_and_its_states(tmp_path: Path, name: str) -> None:
    backend = open_backend(tmp_path, name)
    given = prompts()
    turns = list(backend.generate(given, GREEDY))
    model: Any = backend.model
    for prompt, turn in zip(given, turns, strict=True):
        ids = torch.from_numpy(prompt.input_ids).long()[None]
        out = model.generate(ids, do_sample=False, max_new_tokens=prompt.max_new_tokens)
        assert turn.new_ids.tolist() == out[0, ids.shape[1] :].tolist()
        assert turn.finish == ("stop" if turn.new_ids[-1] == 2 else "length")
    check_states(backend, given, turns)


def test_a_target_without_a_cache_is_refused() -> None:
    """Each token would be written as if it were the text's first."""
    cache = DynamicCache()
    assert cache_of(CausalLMOutputWithPast(past_key_values=cache)) is cache
    with pytest.raises(ConfigError, match=r"keeps no cache .*leave out --generate"):
        cache_of(CausalLMOutput())


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("batch_tokens", [90, 4096])
def test_batches_do_not_matter_and_turns_end_at_different_times(
    tmp_path: Path, name: str, batch_tokens: int
) -> None:
    """At a high temperature the end token comes now and then, and rows leave the cache."""
    settings = GenerateConfig(temperature=3.0)
    backend = open_backend(tmp_path, name, batch_tokens)
    given = [
        Prompt(prompt.input_ids, 100 * round_ + prompt.seed, prompt.max_new_tokens)
        for round_ in range(3)
        for prompt in prompts()
    ]
    turns = list(backend.generate(given, settings))
    assert {turn.finish for turn in turns} == {"stop", "length"}
    for prompt, turn in zip(given, turns, strict=True):
        ended = turn.new_ids.tolist().index(2) + 1 if 2 in turn.new_ids else prompt.max_new_tokens
        assert len(turn.new_ids) == ended
        (alone,) = backend.generate([prompt], settings)
        assert turn.new_ids.tolist() == alone.new_ids.tolist()
    check_states(backend, given, turns)


def test_no_room_is_no_turn(tmp_path: Path) -> None:
    backend = open_backend(tmp_path, "llama")
    full, room = prompts()[:2]
    none, some = backend.generate([Prompt(full.input_ids, 0, 0), room], GREEDY)
    assert (none.new_ids.tolist(), none.finish) == ([], "length")
    assert len(none.states.aux_TLH) == len(full.input_ids)
    assert len(some.new_ids) > 0


def test_it_says_how_much_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "_SELDOM_SECONDS", 0.0)
    backend = open_backend(tmp_path, "llama")
    said: list[str] = []
    with activity.watched(said.append):
        turns = list(backend.generate(prompts(), GREEDY))
    num_tokens = sum(len(turn.new_ids) for turn in turns)
    assert said[0].startswith("the target writes: ")
    assert said[-1] == (
        f"the target writes: {num_tokens} tokens of this shard,"
        f" {len(turns)} of {len(turns)} turns ended"
    )
