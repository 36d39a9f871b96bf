"""A generated dump is a function of its input and its settings, however it came about."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specpipe.schemas.errors import IdentityError, IntegrityError, ValidationError
from specpipe.schemas.records.dump import SAMPLES_FILE, TextOrigin, plan_key
from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.dump.run import run
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.shard.samples import check_plan, plan_from_parquet
from specpipe.stages.target.backend import Captured, Prompt
from specpipe.stages.target.hf.backend import HfBackend
from specpipe.stages.upkeep.verify.run import verify
from tests.dump.generate.questions import answer, asked, generate_config, questions, samples, stored
from tests.dump.resume.test_dump_kill import PROGRAM, contents

# Turns are short, so that most conversations come to their second one.
SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_tokens": 30, "stop": ("=", ".")}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [asked(text, "And twice that?") for text in questions(8)]


@pytest.mark.slow
def test_the_same_again_and_killed_at_any_write(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    config = generate_config(tmp_path, rows, generate=SAMPLED, shard_tokens=500)
    result = run(config)
    assert result.num_shards > 2
    assert result.generation is not None
    assert result.generation["num_turns"] > result.num_samples
    expected = contents(config.out)
    chains = [[n] for n in (7, 20, 33, 46, 59, 72)]
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "moments.json").write_text(json.dumps([*chains, [25, 31]]))
    killed = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, PROGRAM, tmp_path / "config.json", killed, tmp_path / "moments.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 5
    for at in range(len(chains) + 1):
        found = contents(str(killed / str(at)))
        assert found.keys() == expected.keys()
        assert [key for key in expected if found[key] != expected[key]] == []


@pytest.mark.slow
def test_neither_order_nor_batch_matter(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    config = generate_config(tmp_path, rows, generate=SAMPLED)
    run(config)
    made = {sample.sample_id: (sample, states) for sample, states in stored(config.out)}
    for name, order, changes in (
        ("reversed", rows[::-1], {}),
        ("alone", rows, {"batch_tokens": 1, "shard_tokens": 200}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        other = generate_config(folder, order, generate=SAMPLED, **changes)
        run(other)
        found = stored(other.out)
        assert {sample.sample_id for sample, _ in found} == made.keys()
        for sample, states in found:
            same, its_states = made[sample.sample_id]
            assert sample.input_ids.tolist() == same.input_ids.tolist()
            assert np.allclose(states.logz_S, its_states.logz_S, atol=2e-3)


@pytest.mark.slow
def test_another_seed_gives_other_texts(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    texts = []
    for seed in (0, 1):
        generate = {**SAMPLED, "seed": seed}
        config = generate_config(tmp_path, rows, generate=generate, out=tmp_path / str(seed))
        run(config)
        texts.append([tuple(answer(sample)) for sample in samples(config.out)])
    assert all(one != other for one, other in zip(*texts, strict=True))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"temperature": 0.9}, "text.temperature"),
        ({"top_p": 0.9}, "text.top_p"),
        ({"max_tokens": 31}, "text.max_tokens"),
        ({"stop": ("\n",)}, "text.stop"),
        ({"seed": 5}, "text.seed"),
        ({"samples_per_prompt": 2}, "text.samples_per_prompt"),
    ],
)
def test_other_settings_are_another_dump(
    tmp_path: Path, rows: list[dict[str, Any]], changes: dict[str, Any], field: str
) -> None:
    config = generate_config(tmp_path, rows[:2], generate=SAMPLED, out="memory://settings")
    run(config)
    assert run(config).did_nothing
    other = config.model_copy(
        update={"generate": GenerateConfig.model_validate({**SAMPLED, **changes})}
    )
    with pytest.raises(IdentityError, match=field):
        run(other)
    ids = [{sample.sample_id for sample in samples(config.out)}]
    other = other.model_copy(update={"out": f"memory://settings/{field}"})
    run(other)
    ids.append({sample.sample_id for sample in samples(other.out)})
    assert not ids[0] & ids[1]


def test_a_text_that_does_not_begin_with_its_prompt_is_found(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    config = generate_config(tmp_path, rows[:2], generate=SAMPLED)
    run(config)
    dump = Dump.open(config.out)
    reader = dump.shard(0)
    kept = reader.samples()
    plan = plan_from_parquet(dump.folder.read(plan_key(0)), "plan")
    check_plan(kept, plan, SAMPLES_FILE)
    other_ids = kept[0].input_ids.copy()
    other_ids[1] += 1
    supervised = kept[0].loss_mask.copy()
    supervised[1] = 1
    longer = np.zeros(plan[0].size + 1, np.int32)
    longer[: kept[0].num_tokens] = kept[0].input_ids
    for changed in (
        replace(kept[0], input_ids=other_ids),
        replace(kept[0], loss_mask=supervised),
        replace(kept[0], input_ids=longer, loss_mask=np.ones_like(longer, np.uint8)),
        replace(kept[0], prompt_id=kept[1].prompt_id),
        replace(kept[0], input_ids=kept[0].input_ids[:3], loss_mask=kept[0].loss_mask[:3]),
    ):
        with pytest.raises(IntegrityError, match="of the shard's plan"):
            check_plan([changed, kept[1]], plan, SAMPLES_FILE)


def test_short_answers_to_generous_limits_leave_little_padding(tmp_path: Path) -> None:
    """The plan has room for 500 tokens of each answer; chunks are no larger than what came."""
    rows = [asked(text) for text in questions(4)]
    generate = {"temperature": 0.0, "max_tokens": 450}
    config = generate_config(tmp_path, rows, generate=generate, shard_tokens=10**5)
    config = config.model_copy(update={"chunk_tokens": 4096})
    result = run(config)
    dump = Dump.open(config.out)
    (manifest,) = dump.manifests.values()
    assert manifest.chunk_rows[f"aux_{dump.identity.layers[0]}"] == result.num_tokens < 1500
    assert manifest.chunk_rows["final"] == result.num_rows
    hidden = dump.identity.target.hidden_size
    aux = next(entry for entry in manifest.objects if "/aux_" in entry.key)
    assert aux.size == result.num_tokens * hidden * 2 + 4
    assert verify(config.out).damages == ()


def test_a_target_that_generates_otherwise_than_it_reads_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one would whose positions count the padding on the left."""
    generate = HfBackend.generate

    def shifted(self: HfBackend, prompts: Sequence[Prompt], settings: GenerateConfig) -> Any:
        for turn in generate(self, prompts, settings):
            aux_TLH = turn.states.aux_TLH.roll(1, 0)
            yield type(turn)(turn.new_ids, turn.finish, Captured(aux_TLH, turn.states.final_TH))

    monkeypatch.setattr(HfBackend, "generate", shifted)
    config = generate_config(tmp_path, rows, generate=SAMPLED)
    with torch.no_grad(), pytest.raises(ValidationError, match="when it generates a text differ"):
        run(config)
    assert Dump.open(config.out, allow_unfinished=True).manifests == {}


@pytest.mark.parametrize(
    ("text", "sampled", "greedy"),
    [
        (TextOrigin(kind="generated", temperature=1.0, top_p=1.0, stop=("x",)), True, False),
        (TextOrigin(kind="generated", temperature=1.0, top_p=0.99), False, False),
        (TextOrigin(kind="generated", temperature=0.0, top_p=0.5), False, True),
        (TextOrigin(kind="generated", temperature=0.5, top_p=1.0), False, False),
    ],
)
def test_which_replay_is_exact(text: TextOrigin, sampled: bool, greedy: bool) -> None:
    assert (text.is_sampled, text.is_greedy) == (sampled, greedy)
