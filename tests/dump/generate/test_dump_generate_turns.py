"""What the target writes turn by turn: where turns end, what is fed back, what is counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.schemas.records.dump import plan_key
from specpipe.stages.dump.run import run
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.samples import plan_from_parquet
from specpipe.stages.upkeep.verify.run import verify
from tests.dump.generate.questions import (
    END,
    TARGET,
    Row,
    answer,
    asked,
    generate_config,
    other_target,
    questions,
    samples,
)

MOST_TOKENS = 80
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": MOST_TOKENS}
SECOND, THIRD = "And twice that?", "Thanks."


@pytest.fixture(scope="module")
def write() -> Callable[[list[int], int], list[int]]:
    """write(ids, most): the tokens that transformers goes on with, greedily."""
    model: Any = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)

    def generate(ids: list[int], most: int) -> list[int]:
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=most)
        new: list[int] = out[0, len(ids) :].tolist()
        return new

    return generate


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TARGET)


def counts_of(config: Any) -> dict[str, int]:
    """What the run, its index and its manifests count alike; zeros are left out."""
    result = run(config)
    assert result.generation is not None
    dump = Dump.open(config.out)
    assert dump.index is not None
    assert dump.index.totals.generation is not None
    assert dump.index.totals.generation.model_dump() == result.generation
    assert verify(config.out).damages == ()
    for name, number in result.generation.items():
        assert number == sum(
            getattr(manifest.generation, name) for manifest in dump.manifests.values()
        )
    return {name: number for name, number in result.generation.items() if number}


@pytest.mark.slow
def test_turns_are_fed_back(
    tmp_path: Path, tokenizer: Any, write: Callable[[list[int], int], list[int]]
) -> None:
    rows = [asked(text, SECOND, THIRD) for text in questions(3)]
    rows[1]["messages"].append({"role": "assistant", "content": "Dropped."})
    rows[2]["messages"].insert(0, {"role": "system", "content": "Be short."})
    config = generate_config(tmp_path, rows, generate=GREEDY)
    counts = counts_of(config)
    num_stopped = 0
    for row, sample in zip(rows, samples(config.out), strict=True):
        said = [message for message in row["messages"] if message["role"] != "assistant"]
        start = 2 if said[0]["role"] == "system" else 1
        text = tokenizer.apply_chat_template(
            said[:start], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        mask = [0] * len(ids)
        finish = []
        for following in (SECOND, THIRD, None):
            new = write(ids, MOST_TOKENS)
            ids, mask = ids + new, mask + [1] * len(new)
            finish.append("stop" if new[-1] == END else "max_tokens")
            num_stopped += new[-1] == END
            if new[-1] != END or following is None:
                break
            between = tokenizer(f"<|user|>{following}<|end|><|assistant|>")["input_ids"]
            ids, mask = ids + between, mask + [0] * len(between)
        assert sample.input_ids.tolist() == ids
        assert sample.loss_mask.tolist() == mask
        assert sample.metadata == {"finish": finish}
    assert counts["num_stopped"] == num_stopped > 3
    assert counts["num_turns"] == num_stopped + counts.get("num_max_tokens", 0)
    assert counts["num_new_tokens"] == sum(len(answer(s)) for s in samples(config.out))


@pytest.mark.slow
def test_the_plan_holds_prompts_and_the_shards_begin_with_them(tmp_path: Path) -> None:
    rows = [asked(text, SECOND) for text in questions(6)]
    config = generate_config(tmp_path, rows, generate=GREEDY, shard_tokens=700)
    run(config)
    dump = Dump.open(config.out)
    assert len(dump.manifests) > 1
    for shard_id in dump.manifests:
        plan = plan_from_parquet(dump.folder.read(plan_key(shard_id)), "plan")
        for planned, sample in zip(plan, dump.shard(shard_id).samples(), strict=True):
            assert planned.loss_mask.sum() == 0
            assert planned.sample_id == sample.sample_id
            assert planned.prompt_id == sample.prompt_id
            start = planned.num_tokens
            assert sample.input_ids[:start].tolist() == planned.input_ids.tolist()
            assert int(np.argmax(sample.loss_mask)) == start
            # Two turns, and the second question with what the template writes around it.
            assert 2 * MOST_TOKENS < planned.max_new_tokens < 2 * MOST_TOKENS + 25
            assert sample.num_tokens <= planned.size
            assert planned.metadata["dialogue"]["before_turns"][1][0]["content"] == SECOND


def test_plain_text_and_tokens_go_on(
    tmp_path: Path, tokenizer: Any, write: Callable[[list[int], int], list[int]]
) -> None:
    text = "He has 4 apples. She has 3"
    ids = tokenizer(text)["input_ids"]
    labels = [-100] * 5 + ids[5:]
    rows: list[list[Row]] = [
        [{"text": text}],
        [{"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}],
        [{"input_ids": ids}],
    ]
    for at, (row, prompt) in enumerate(zip(rows, (ids, ids[:5], ids), strict=True)):
        folder = tmp_path / str(at)
        folder.mkdir()
        config = generate_config(folder, row)
        run(config)
        (sample,) = samples(config.out)
        new = write(prompt, 24)
        assert sample.input_ids.tolist() == prompt + new
        assert answer(sample) == new


def test_stop_texts_end_a_turn_and_stay(tmp_path: Path, tokenizer: Any) -> None:
    rows = [asked(text, SECOND) for text in questions(6)]
    config = generate_config(tmp_path, rows, generate=GREEDY | {"stop": ("\n", " per ")})
    counts = counts_of(config)
    found: set[str] = set()
    for sample in samples(config.out):
        edges = np.flatnonzero(np.diff(sample.loss_mask, prepend=0, append=0))
        spans = edges.reshape(-1, 2)
        turns = [tokenizer.decode(sample.input_ids[start:stop].tolist()) for start, stop in spans]
        before = [
            tokenizer.decode(sample.input_ids[start : stop - 1].tolist()) for start, stop in spans
        ]
        for turn, but_one, finish in zip(turns, before, sample.metadata["finish"], strict=True):
            ends = [stop for stop in ("\n", " per ") if stop in turn]
            found.update(ends)
            assert bool(ends) == (finish == "stop" and "<|end|>" not in turn)
            # In the last token, and nowhere before.
            assert not any(stop in but_one for stop in ends)
        # What the target did not write of a turn's end, the template does: it is not supervised.
        if len(turns) == 2 and "<|end|>" not in turns[0]:
            assert sample.loss_mask[edges[1]] == 0
            assert sample.input_ids[edges[1]] == END
    assert found == {"\n", " per "}
    assert counts["num_stopped"] == counts["num_turns"] > 6


def test_a_turn_is_cut_off_at_its_limit_and_ends_the_conversation(tmp_path: Path) -> None:
    rows = [asked(text, SECOND) for text in questions(4)]
    config = generate_config(tmp_path, rows, generate={"max_tokens": 5})
    assert counts_of(config) == {
        "num_turns": 4,
        "num_new_tokens": 20,
        "num_max_tokens": 4,
        "num_broken_off": 4,
    }
    assert {s.metadata["finish"][0] for s in samples(config.out)} == {"max_tokens"}


def test_the_context_cuts_off_and_leaves_out(tmp_path: Path, tokenizer: Any) -> None:
    texts = sorted(questions(8), key=len)
    lengths = [
        len(
            tokenizer.apply_chat_template(asked(t)["messages"], add_generation_prompt=True)[
                "input_ids"
            ]
        )
        for t in texts
    ]
    limit = lengths[4]
    rows = [asked(text) for text in texts]
    config = generate_config(tmp_path, rows, generate={"max_tokens": 1000}, context_length=limit)
    counts = counts_of(config)
    kept = samples(config.out)
    assert len(kept) == sum(length < limit for length in lengths) < 8
    assert all(sample.num_tokens <= limit for sample in kept)
    assert counts["num_context_length"] == sum(
        sample.metadata["finish"] == ["context_length"] for sample in kept
    )
    assert counts["num_context_length"] > 0
    left_out = [
        json.loads(line)
        for line in Dump.open(config.out).folder.read("rejected.jsonl").splitlines()
    ]
    assert [entry["kind"] for entry in left_out] == ["left_out"] * (8 - len(kept))
    assert f"leaves no room within the context length {limit}" in left_out[0]["reason"]
    assert run(config).num_left_out == 8 - len(kept)


def test_the_context_ends_a_conversation(tmp_path: Path) -> None:
    row = asked(questions(1)[0], SECOND)
    whole = generate_config(tmp_path, [row], generate=GREEDY)
    run(whole)
    (sample,) = samples(whole.out)
    second = np.flatnonzero(np.diff(sample.loss_mask) == 1)[1] + 1
    # Room for the second question, but for no token of its answer.
    cut = whole.model_copy(update={"context_length": int(second), "out": str(tmp_path / "cut")})
    assert counts_of(cut)["num_broken_off"] == 1
    (short,) = samples(cut.out)
    assert short.loss_mask[-1] == 1
    assert short.input_ids.tolist() == sample.input_ids[: short.num_tokens].tolist()
    assert short.metadata == {"finish": ["stop"]}


def test_an_end_token_alone_is_an_empty_answer_and_supervised(
    tmp_path: Path, write: Callable[[list[int], int], list[int]], tokenizer: Any
) -> None:
    question = questions(1)[0]
    prompt = tokenizer.apply_chat_template(asked(question)["messages"], add_generation_prompt=True)
    (first,) = write(prompt["input_ids"], 1)
    target = other_target(tmp_path / "target", generation_config__json={"eos_token_id": [2, first]})
    config = generate_config(tmp_path, [asked(question)], target=target)
    assert counts_of(config) == {
        "num_turns": 1,
        "num_new_tokens": 1,
        "num_stopped": 1,
        "num_empty": 1,
    }
    (sample,) = samples(config.out)
    assert answer(sample) == [first]


@pytest.mark.parametrize("written", ["[:9]", " | upper"])
def test_a_template_that_rewrites_earlier_turns_ends_the_conversation(
    tmp_path: Path, written: str
) -> None:
    template = (TARGET / "chat_template.jinja").read_text(encoding="utf-8")
    assert "message['content'] }}<|end|>" in template
    template = template.replace(
        "message['content'] }}<|end|>", f"message['content']{written} }}}}<|end|>"
    )
    target = other_target(tmp_path / "target", chat_template__jinja=template)
    rows = [asked(text, SECOND) for text in questions(3)]
    config = generate_config(tmp_path, rows, generate=GREEDY, target=target)
    counts = counts_of(config)
    assert counts["num_turns"] == 3
    assert counts["num_rewritten"] == counts["num_stopped"] > 0


def test_samples_per_prompt_and_repeated_prompts(tmp_path: Path) -> None:
    first, second = questions(2)
    rows = [asked(first), asked(second), asked(first)]
    generate = {"temperature": 1.5, "samples_per_prompt": 3}
    config = generate_config(tmp_path, rows, generate=generate)
    run(config)
    made = samples(config.out)
    assert [sample.source.line for sample in made] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len({sample.sample_id for sample in made}) == 9
    assert len({tuple(answer(sample)) for sample in made}) == 9
    prompt_ids = [sample.prompt_id for sample in made]
    assert len(set(prompt_ids)) == 2
    assert prompt_ids[0] == prompt_ids[2] == prompt_ids[6]
    assert {sample.multiplicity for sample in made} == {1}
    # As text that is given, they are held out alike.
    given = [
        {
            "input_ids": sample.input_ids.tolist(),
            "labels": np.where(sample.loss_mask, sample.input_ids, -100).tolist(),
            "attention_mask": [1] * sample.num_tokens,
        }
        for sample in made
    ]
    again = generate_config(tmp_path, given, out=tmp_path / "again")
    run(again.model_copy(update={"generate": None}))
    assert [s.prompt_id for s in samples(again.out)] == prompt_ids


def test_greedy_answers_to_the_same_prompt_are_not_merged(tmp_path: Path) -> None:
    config = generate_config(tmp_path, [asked(questions(1)[0])] * 2)
    run(config)
    one, other = samples(config.out)
    assert one.sample_id != other.sample_id
    assert answer(one) == answer(other)


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
USER = {"role": "user", "content": "2 + 2?"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"messages": [USER, CALL, {"role": "tool", "content": "4"}, USER]},
            r"messages\[2\] answers a call of a tool",
        ),
        ({"messages": [{"role": "assistant", "content": "Hi"}, USER]}, "speaks first"),
        ({"messages": []}, "must be a list of messages"),
        ({"text": ""}, "the prompt has no tokens"),
        ({"text": 5}, "'text' must be a string"),
        ({"input_ids": []}, "no token is attended to"),
        (
            {"input_ids": [5, 6], "labels": [5, 6], "attention_mask": [1, 1]},
            "no token stands before the first supervised one",
        ),
        ({"input_ids": [5, 2048]}, "outside the target's vocabulary"),
    ],
)
def test_rows_that_are_no_prompts_are_refused(tmp_path: Path, row: Row, reason: str) -> None:
    config = generate_config(tmp_path, [row])
    with pytest.raises(InputError, match=reason) as raised:
        run(config)
    assert "data.jsonl:1" in str(raised.value)
    kept = next(iter(row))
    good = {"messages": [USER], "text": "2 + 2", "input_ids": [1, 5, 6]}[kept]
    config = generate_config(tmp_path, [row, {kept: good}], max_rejected=1)
    result = run(config)
    assert (result.num_samples, result.num_rejected) == (1, 1)


def test_stop_texts_need_a_tokenizer(tmp_path: Path) -> None:
    target = other_target(tmp_path / "target")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (target / name).unlink()
    config = generate_config(tmp_path, [{"input_ids": [1, 5, 6]}], target=target)
    run(config)
    stop = generate_config(
        tmp_path,
        [{"input_ids": [1, 5, 6]}],
        target=target,
        out=tmp_path / "stop",
        generate={"stop": ("x",)},
    )
    with pytest.raises(ConfigError, match="no tokenizer files: stop needs them"):
        run(stop)
