"""Text that the target writes while it is dumped is what it writes otherwise, states included.

Legend: B prompts, T tokens.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.states import U16
from specpipe.stages.train.run import run as train
from specpipe.stages.upkeep.verify.run import verify
from tests.dump.conftest import small_config, write_lines
from tests.dump.generate.questions import (
    END,
    TARGET,
    answer,
    asked,
    generate_config,
    questions,
    samples,
    stored,
)

NUM_QUESTIONS = 100
MOST_TOKENS = 24


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TARGET, padding_side="left")


def prompt_ids(question: str) -> list[int]:
    ids: list[int] = tokenizer().apply_chat_template(
        asked(question)["messages"], add_generation_prompt=True, return_dict=False
    )
    return ids


def floats(bits: U16) -> torch.Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16).float()


@pytest.mark.slow
def test_at_temperature_0_it_is_generating_first_and_dumping_after(
    tmp_path: Path, model: Any
) -> None:
    asked_for = questions(10)
    rows = [asked(text) for text in asked_for]
    changes: dict[str, Any] = {"layers": (1, 4, 8), "shard_tokens": 700}
    config = generate_config(tmp_path, rows, generate={"max_tokens": 64}, **changes)
    result = run(config)
    assert result.num_shards > 1
    made = stored(config.out)
    written = []
    for question, (sample, _) in zip(asked_for, made, strict=True):
        ids = prompt_ids(question)
        plain = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64)
        plain = plain[0].tolist()
        assert sample.input_ids.tolist() == plain
        assert sample.loss_mask.tolist() == [0] * len(ids) + [1] * (len(plain) - len(ids))
        labels = [-100] * len(ids) + plain[len(ids) :]
        written.append({"input_ids": plain, "labels": labels, "attention_mask": [1] * len(plain)})
    assert {answer(sample)[-1] == END for sample, _ in made} == {True, False}
    after = small_config(
        TARGET,
        write_lines(tmp_path / "after.jsonl", written),
        tmp_path / "after",
        dtype="float32",
        layers=(1, 4, 8),
        text_temperature=0.0,
    )
    run(after)
    num_same = num_values = 0
    for (_, ours), (_, theirs) in zip(made, stored(after.out), strict=True):
        assert ours.final_SH is not None
        assert theirs.final_SH is not None
        for mine, other in ((ours.aux_TLH, theirs.aux_TLH), (ours.final_SH, theirs.final_SH)):
            # One unit in the last place of bfloat16, and what is nothing beside the states.
            torch.testing.assert_close(floats(mine), floats(other), rtol=2**-7, atol=1e-5)
            num_same += int((mine == other).sum())
            num_values += mine.size
        assert np.allclose(ours.token_logprob_S, theirs.token_logprob_S, atol=2e-3)
        assert np.allclose(ours.logz_S, theirs.logz_S, atol=2e-3)
    assert num_same / num_values > 0.999
    texts = [Dump.open(url).identity.text for url in (config.out, after.out)]
    assert [text.is_greedy for text in texts] == [True, True]
    assert [text.is_planned for text in texts] == [True, False]


def sampled_logprobs(model: Any, asked_for: Sequence[str]) -> torch.Tensor:
    """Log-probability of a whole answer to each question, sampled by transformers alone."""
    prompts = {"input_ids": [prompt_ids(text) for text in asked_for]}
    padded = tokenizer().pad(prompts, return_tensors="pt")
    out = model.generate(
        **padded,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MOST_TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new_BT = out.sequences[:, padded["input_ids"].shape[1] :]
    logprob_BTV = torch.stack(out.logits, 1).log_softmax(-1)
    logprob_BT = logprob_BTV.gather(2, new_BT[:, :, None])[:, :, 0]
    # Up to the end token and with it; what follows is padding.
    is_end_BT = (new_BT == END).long()
    logprob_B: torch.Tensor = (logprob_BT * (is_end_BT.cumsum(1) - is_end_BT == 0)).sum(1)
    return logprob_B


@pytest.fixture(scope="module")
def independent_B(model: Any) -> torch.Tensor:
    """Mean log-probability of two answers to each question."""
    torch.manual_seed(1234)
    asked_for = questions(NUM_QUESTIONS)
    parts = [asked_for[start : start + 25] for start in range(0, NUM_QUESTIONS, 25)]
    answers_2B = [torch.cat([sampled_logprobs(model, part) for part in parts]) for _ in range(2)]
    return torch.stack(answers_2B).mean(0)


def standard_errors_off(folder: Path, independent_B: torch.Tensor, **generate: Any) -> float:
    """By how many of its standard errors the mean log-probability of answers is too high."""
    rows = [asked(text) for text in questions(NUM_QUESTIONS)]
    settings = {"max_tokens": MOST_TOKENS, "samples_per_prompt": 2, **generate}
    config = generate_config(folder, rows, generate=settings, shard_tokens=20000, batch_tokens=8000)
    assert run(config).num_samples == 2 * NUM_QUESTIONS
    sums: dict[int, list[float]] = {}
    for sample, states in stored(config.out):
        sums.setdefault(sample.source.line, []).append(float(states.token_logprob_S.sum()))
    ours_B = torch.tensor([np.mean(sums[line]) for line in sorted(sums)])
    difference_B = ours_B - independent_B
    return float(difference_B.mean() / (difference_B.std() / len(difference_B) ** 0.5))


@pytest.mark.slow
def test_at_temperature_1_the_mean_log_probability_is_that_of_other_samples(
    tmp_path: Path, independent_B: torch.Tensor
) -> None:
    assert abs(standard_errors_off(tmp_path, independent_B, temperature=1.0)) < 4


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9}])
def test_that_the_mean_shows_other_settings(
    tmp_path: Path, independent_B: torch.Tensor, settings: dict[str, float]
) -> None:
    assert standard_errors_off(tmp_path, independent_B, **settings) > 4


@pytest.mark.slow
@pytest.mark.parametrize(("top_p", "exact"), [(1.0, True), (0.9, False)])
def test_it_verifies_and_trains_and_the_replay_knows_whether_it_is_exact(
    tmp_path: Path, top_p: float, exact: bool
) -> None:
    generate = {"temperature": 1.0, "top_p": top_p, "samples_per_prompt": 2}
    rows = [asked(text) for text in questions(20)]
    config = generate_config(tmp_path, rows, generate=generate)
    result = run(config)
    report = verify(config.out)
    assert report.complete
    assert not report.damages
    dump = Dump.open(config.out)
    text = dump.identity.text
    assert (text.kind, text.temperature, text.top_p) == ("generated", 1.0, top_p)
    assert (text.max_tokens, text.samples_per_prompt, text.stated) == (24, 2, False)
    supervised = sum(len(answer(sample)) for sample in samples(config.out))
    assert result.num_rows == supervised == int(dump.vocab().count_V.sum())
    trained = train(
        TrainConfig(
            dump=config.out,
            out=str(tmp_path / "run"),
            num_heads=2,
            draft_vocab_size=256,
            max_steps=4,
            batch_tokens=512,
            held_out_fraction=0.3,
            device="cpu",
        )
    )
    best = trained.best
    assert best is not None
    assert best.replay_temperature_1.exact is exact
    assert best.replay_greedy.exact is False
