"""What the target writes in vLLM while it is dumped is what a plain vLLM engine writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specpipe.stages.storage.shard.int8_states import widened
from specpipe.stages.storage.shard.states import U16
from specpipe.stages.upkeep.verify.run import verify
from specpipe.stages.validate.serve.engine import Decoded, EngineRequest, decode
from tests.dump.commands import Command
from tests.dump.conftest import small_config, write_lines
from tests.dump.generate.questions import (
    END,
    TARGET,
    answer,
    asked,
    generate_config,
    questions,
    stored,
)

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

NUM_QUESTIONS = 100
MOST_TOKENS = 24


def prompt_ids() -> list[list[int]]:
    tokenizer: Any = AutoTokenizer.from_pretrained(TARGET)
    return [
        tokenizer.apply_chat_template(
            asked(text)["messages"], add_generation_prompt=True, return_dict=False
        )
        for text in questions(NUM_QUESTIONS)
    ]


@pytest.fixture(scope="module")
def plain() -> tuple[Decoded, Decoded]:
    """Answers of an engine that captures nothing: greedy ones and samples."""
    request = EngineRequest(
        target=str(TARGET),
        artifact=None,
        prompts=prompt_ids(),
        max_tokens=MOST_TOKENS,
        temperatures=[0.0, 1.0],
        seed=99,
    )
    greedy, sampled = decode(request).decoded
    return greedy, sampled


def up_to_end(ids: list[int]) -> list[int]:
    """The engine that captures nothing goes on behind the end token."""
    return ids[: ids.index(END) + 1] if END in ids else ids


def dumped(folder: Path, **generate: Any) -> Any:
    """A dump by the real command."""
    rows = [asked(text) for text in questions(NUM_QUESTIONS)]
    settings = {"max_tokens": MOST_TOKENS, **generate}
    config = generate_config(folder, rows, generate=settings, backend="vllm", dtype="auto")
    command = Command(config, folder / "command")
    assert command.wait() == 0, command.stderr
    assert command.result["num_samples"] == NUM_QUESTIONS
    for said in ("dump: starting vLLM", "dump: the target writes: "):
        assert said in command.stderr
    return config


def floats(bits: U16 | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    assert bits is not None
    return widened(bits)


def test_at_temperature_0_it_is_generating_first_and_dumping_after(
    tmp_path: Path, plain: tuple[Decoded, Decoded]
) -> None:
    config = dumped(tmp_path, temperature=0.0)
    assert verify(config.out).damages == ()
    made = stored(config.out)
    same = [
        answer(sample) == up_to_end(ids)
        for (sample, _), ids in zip(made, plain[0].output_ids, strict=True)
    ]
    # Two tokens whose logits are one in bfloat16 may come out either way in batches of two shapes.
    assert sum(same) >= 0.97 * NUM_QUESTIONS
    written = [
        {
            "input_ids": sample.input_ids.tolist(),
            "labels": np.where(sample.loss_mask == 1, sample.input_ids, -100).tolist(),
            "attention_mask": [1] * sample.num_tokens,
        }
        for sample, _ in made
    ]
    after = small_config(
        TARGET,
        write_lines(tmp_path / "after.jsonl", written),
        tmp_path / "after",
        backend="vllm",
        text_temperature=0.0,
        shard_tokens=4000,
    )
    command = Command(after, tmp_path / "command-after")
    assert command.wait() == 0, command.stderr
    for (ours, a), (theirs, b) in zip(made, stored(after.out), strict=True):
        assert np.array_equal(ours.input_ids, theirs.input_ids)
        assert np.array_equal(ours.loss_mask, theirs.loss_mask)
        # The last token was never an input; nothing reads its states.
        assert not a.aux_TLH[-1].any()
        for mine, other in ((a.aux_TLH[:-1], b.aux_TLH[:-1]), (a.final_SH, b.final_SH)):
            difference = np.linalg.norm(floats(mine) - floats(other))
            assert difference < 2e-2 * np.linalg.norm(floats(other))
        assert np.abs(a.token_logprob_S - b.token_logprob_S).mean() < 2e-2


def test_at_temperature_1_the_mean_log_probability_is_that_of_other_samples(
    tmp_path: Path, plain: tuple[Decoded, Decoded]
) -> None:
    config = dumped(tmp_path, temperature=1.0)
    ours_B = torch.tensor([float(states.token_logprob_S.sum()) for _, states in stored(config.out)])
    model: Any = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    others = []
    for prompt, output in zip(prompt_ids(), plain[1].output_ids, strict=True):
        written = up_to_end(output)
        ids = torch.tensor([prompt + written])
        with torch.no_grad():
            logprob_TV = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        others.append(logprob_TV.gather(1, torch.tensor(written)[:, None]).sum())
    difference_B = ours_B - torch.stack(others)
    off = difference_B.mean() / (difference_B.std() / NUM_QUESTIONS**0.5)
    assert abs(float(off)) < 4, float(off)
    # The measure is sharp enough to show another temperature: greedy answers are far off.
    assert len({tuple(answer(sample)) for sample, _ in stored(config.out)}) > 0.9 * NUM_QUESTIONS
