"""What training refuses before the first step, and how it ends when it must."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.schemas.errors import (
    ConfigError,
    DivergedError,
    IdentityError,
    InputError,
    IntegrityError,
    StoreError,
    UnfinishedError,
)
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.folder import RunFolder
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.train.run import run
from specpipe.stages.train.trainee import Trainee
from tests.train.conftest import MakeConfig, MakeDump, resolved, same_run


def test_another_dump_or_target_than_the_checkpoints(
    make_config: MakeConfig, make_dump: MakeDump
) -> None:
    config = make_config(time_limit=1e-6)
    with pytest.raises(UnfinishedError):
        run(config)
    (Path(config.out) / "config.json").unlink()
    for changes, words in (
        ({"target_seed": 1}, "another target"),
        ({"data_seed": 1}, "another dump"),
    ):
        other = config.model_copy(update={"dump": str(make_dump(**changes))})
        with pytest.raises(IdentityError, match=words) as raised:
            run(other)
        assert raised.value.exit_code == 2


def test_eval_dump_of_another_target(make_config: MakeConfig, make_dump: MakeDump) -> None:
    with pytest.raises(IdentityError, match="do not go together: the target"):
        run(make_config(eval_dump=str(make_dump(target_seed=1))))
    with pytest.raises(IdentityError, match="layers"):
        run(make_config(eval_dump=str(make_dump(layers=(1, 3))), out=make_config().out + "2"))


def test_settings_changed_in_a_run_directory(make_config: MakeConfig) -> None:
    with pytest.raises(UnfinishedError):
        run(make_config(time_limit=1e-6))
    with pytest.raises(IdentityError, match=r"learning_rate: 0.003 -> 0.1.*another --out"):
        run(make_config(learning_rate=0.1))


def test_two_runs_in_one_directory(make_config: MakeConfig) -> None:
    config = make_config()
    Path(config.out).mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
            "print('held', flush=True); sys.stdin.read()",
            str(Path(config.out) / ".lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ConfigError, match="another process"):
            run(config)
        assert holder.stdin is not None
        holder.stdin.close()
    assert run(config).steps == 12


def test_run_directory_on_an_object_store(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="local"):
        run(make_config(out="memory://run"))


def test_a_prompt_of_the_eval_dump_is_not_trained_on(
    make_config: MakeConfig, make_dump: MakeDump, dump: Path
) -> None:
    with pytest.raises(InputError, match="evaluate on other prompts"):
        run(make_config(eval_dump=str(dump)))
    third = make_dump(num_samples=20)
    evaluated, trained = (
        [s.prompt_id for i in opened.manifests for s in opened.shard(i).samples()]
        for opened in (Dump.open(str(third)), Dump.open(str(dump)))
    )
    expected = sum(prompt in evaluated for prompt in trained)
    assert 20 <= expected < 60
    assert run(make_config(eval_dump=str(third), max_steps=1)).num_left_out == expected


@pytest.mark.parametrize("mixed", [False, True])
def test_a_dump_may_move(
    mixed: bool, make_config: MakeConfig, make_dump: MakeDump, tmp_path: Path
) -> None:
    """Alone, or mixed in."""

    def of(path: Path, weight: float = 0.5, **changes: Any) -> TrainConfig:
        sources: dict[str, Any] = {"mix": {str(path): weight}} if mixed else {"dump": str(path)}
        return make_config(**sources, **changes)

    source = make_dump(data_seed=5)
    with pytest.raises(UnfinishedError):
        run(of(source, time_limit=1e-6))
    moved = source.rename(tmp_path / "moved")
    assert run(of(moved)).steps == 12
    # A complete run needs its dump no more, but is not taken for the run of another one.
    gone = moved.rename(tmp_path / "gone")
    assert run(of(moved)).did_nothing
    assert run(of(gone)).did_nothing
    others = [of(make_dump(data_seed=3)), of(gone, eval_dump=str(gone))]
    if mixed:
        others += [of(gone, weight=0.7), make_config()]
    for other in others:
        with pytest.raises(IdentityError, match="complete run of another dump"):
            run(other)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_devices_that_are_not_there(device: str, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=device):
        run(make_config(device=device))


def test_an_edited_state_is_refused(make_config: MakeConfig) -> None:
    config = make_config(time_limit=1e-6)
    with pytest.raises(UnfinishedError):
        run(config)
    path = Path(config.out) / "checkpoints" / "step-00000001" / "state.json"
    path.write_text(path.read_text().replace('"batch_in_epoch": 1', '"batch_in_epoch": 3'))
    with pytest.raises(IntegrityError, match="content_sha256"):
        run(config)


def test_unfinished_and_missing_dumps(
    make_config: MakeConfig, make_dump: MakeDump, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        run(make_config(dump=str(tmp_path / "nothing")))
    dump = make_dump()
    (dump / "index.json").unlink()
    with pytest.raises(UnfinishedError):
        run(make_config(dump=str(dump)))


@pytest.mark.parametrize("preverify", ["auto", "metadata"])
def test_a_flipped_byte_in_the_states_never_reaches_a_step(
    preverify: str, make_config: MakeConfig, make_dump: MakeDump
) -> None:
    dump = make_dump()
    chunk = sorted(p for p in dump.glob("shards/*/states.zarr/aux_*/c/**/*") if p.is_file())[0]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0x10
    chunk.write_bytes(bytes(data))
    # Steps of one sample, so that with metadata alone some steps come before the damaged shard.
    config = make_config(dump=str(dump), preverify=preverify, batch_size=1, max_steps=60)
    with pytest.raises(IntegrityError, match="aux") as raised:
        run(config)
    assert raised.value.exit_code == 4


def test_a_missing_chunk_is_found_before_the_first_step(
    make_config: MakeConfig, make_dump: MakeDump
) -> None:
    dump = make_dump()
    sorted(p for p in dump.glob("shards/*/states.zarr/final/c/**/*") if p.is_file())[-1].unlink()
    config = make_config(dump=str(dump), preverify="metadata")
    with pytest.raises(IntegrityError, match="final"):
        run(config)
    assert not (Path(config.out) / "metrics.jsonl").exists()


def test_nothing_held_out(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="held-out-fraction"):
        run(make_config(held_out_fraction=0.0))


def test_one_prompt_cannot_be_trained_and_evaluated_on(
    make_config: MakeConfig, make_dump: MakeDump
) -> None:
    with pytest.raises(InputError, match=r"samples of one prompt, .* give an --eval-dump"):
        run(make_config(dump=str(make_dump(num_samples=1))))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"dump": 1}'])
def test_damaged_settings_of_a_run_may_be_removed(text: str, make_config: MakeConfig) -> None:
    config = make_config(time_limit=1e-6)
    with pytest.raises(UnfinishedError):
        run(config)
    path = Path(config.out) / "config.json"
    path.write_text(text)
    with pytest.raises(IntegrityError, match=r"config.json is damaged \(.*\); remove it") as raised:
        run(config)
    assert "\n" not in str(raised.value)
    assert "http" not in str(raised.value)
    path.unlink()
    assert run(config.model_copy(update={"time_limit": None})).steps


def test_context_too_short_for_any_draft(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        run(make_config(context_length=4))


def test_held_out_answers_too_short_for_a_round_of_all_heads(make_config: MakeConfig) -> None:
    # Answers begin at the fifth token, so three of their tokens are left.
    with pytest.raises(InputError, match=r"longer than 3 tokens.*fewer --num-heads"):
        run(make_config(context_length=7, max_steps=1))
    assert run(make_config(context_length=7, max_steps=1, num_heads=2)).steps == 1


def test_draft_vocabulary_larger_than_the_targets(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="draft_vocab_size 1000"):
        run(make_config(draft_vocab_size=1000))


@pytest.mark.parametrize("step", [1, 8])
def test_divergence_stops_saved_with_the_samples_named(
    step: int, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_config()
    clip = torch.nn.utils.clip_grad_norm_
    calls = 0

    def poisoned(parameters: object, norm: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        tensors = list(parameters)  # type: ignore[call-overload]
        # At this step, and at the first one of the run that goes on from there.
        if calls in (step, step + 1):
            tensors[0].grad.fill_(math.nan)
        return clip(tensors, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
    said = []
    for _ in range(2):
        with pytest.raises(DivergedError) as raised:
            run(config)
        assert raised.value.exit_code == 6
        said.append(str(raised.value))
    assert re.search(rf"step {step} \(shard \d+ sample \d+.*nothing was updated", said[0])
    assert said[0] == said[1]
    path = Path(config.out) / "checkpoints" / f"step-{step - 1:08}"
    assert str(path) in said[0]
    assert all(bool(t.isfinite().all()) for t in load_checkpoint(path).model.values())
    monkeypatch.undo()
    run(config)
    whole = make_config(out=str(tmp_path / "whole"))
    run(whole)
    same_run(Path(whole.out), Path(config.out))


def test_an_evaluation_that_is_not_finite_keeps_the_checkpoint_before(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_config()
    update, calls = torch.optim.AdamW.step, 0

    def too_far(optimizer: torch.optim.AdamW) -> None:
        nonlocal calls
        calls += 1
        update(optimizer)
        for parameter in optimizer.param_groups[0]["params"] if calls == 4 else ():
            parameter.data *= 1e30

    monkeypatch.setattr(torch.optim.AdamW, "step", too_far)
    with pytest.raises(DivergedError, match=r"evaluation at step 4 is not finite") as raised:
        run(config)
    assert raised.value.exit_code == 6
    assert "eval/draft_loss" in str(raised.value)
    assert str(Path(config.out) / "checkpoints" / "step-00000003") in str(raised.value)
    monkeypatch.undo()
    run(config)
    whole = make_config(out=str(tmp_path / "whole"))
    run(whole)
    same_run(Path(whole.out), Path(config.out))


def test_a_rate_so_large_that_the_first_evaluation_is_not_finite(make_config: MakeConfig) -> None:
    config = make_config(learning_rate=1e38, eval_every=1)
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"evaluation at step 1 .*There is no checkpoint"):
            run(config)


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("build", "as the drafter is made"),
        ("loss", "in a step"),
        ("measure", "in an evaluation"),
    ],
)
def test_out_of_gpu_memory_names_the_flags_that_take_less(
    method: str, when: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def does_not_fit(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Trainee, method, does_not_fit)
    with pytest.raises(ConfigError, match=rf"{when}: lower --pack-tokens.*same --out"):
        run(make_config())
    monkeypatch.undo()
    less = {"pack_tokens": 110, "loss_chunk_mib": 1, "activation_checkpointing": True}
    assert run(make_config(**less, embedding_on_cpu=True)).steps == 12


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_checkpoints_are_refused(file: str, damage: str, make_config: MakeConfig) -> None:
    config = make_config(time_limit=1e-6)
    with pytest.raises(UnfinishedError):
        run(config)
    path = Path(config.out) / "checkpoints" / "step-00000001" / file
    data = bytearray(path.read_bytes())
    # Of a JSON file a byte that says something: the last digit of a number may not.
    at = data.index(b"fingerprint") + 20 if file.endswith(".json") else len(data) // 2
    data[at] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes(data) if damage == "flip" else bytes(data[: len(data) // 2]))
    with pytest.raises(IntegrityError, match="step-00000001"):
        run(config)


@pytest.mark.parametrize("file", ["latest", "checkpoints/step-00000001/model.safetensors"])
def test_what_cannot_be_read_is_not_called_unwritable(file: str, make_config: MakeConfig) -> None:
    config = make_config(time_limit=1e-6)
    with pytest.raises(UnfinishedError):
        run(config)
    path = Path(config.out) / file
    path.unlink()
    path.mkdir()
    with pytest.raises(IntegrityError, match=f"{path}: Is a directory"):
        run(config)


@pytest.mark.parametrize("content", ["", "{}", '{"steps": 12'])
def test_a_damaged_result_is_made_anew(content: str, make_config: MakeConfig) -> None:
    config = make_config()
    result = run(config)
    path = Path(config.out) / "result.json"
    path.write_text(content)
    with pytest.raises(IntegrityError, match=r"result\.json is damaged .*remove it") as raised:
        run(config)
    assert raised.value.exit_code == 4
    path.unlink()
    again = run(config)
    assert (again.best, again.checkpoint) == (result.best, result.checkpoint)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a checkpoint nor a run"):
        resolve_checkpoint(tmp_path)


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoints_before(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(checkpoint_every=1)
    first = config.model_copy(update={"time_limit": 1e-6})
    with pytest.raises(UnfinishedError):
        run(first)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    # Files may not grow over 40 kB in this process: the model alone is larger.
    program = (
        "import resource, signal, sys; from pathlib import Path;"
        "from specpipe.schemas.settings.train import TrainConfig;"
        "from specpipe.stages.train.run import run;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000));"
        "run(TrainConfig.model_validate_json(Path(sys.argv[1]).read_text()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert StoreError.__name__ in done.stderr
    assert "the ones before it are intact" in done.stderr
    assert load_checkpoint(Path(config.out) / "checkpoints" / "step-00000001").state.step == 1
    assert run(config).steps == 12


def test_config_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="extra"):
        TrainConfig.model_validate(json.loads('{"dump": "d", "out": "o", "lerning_rate": 1}'))
    with pytest.raises(ValueError, match="a drafter eagle3 has 7"):
        TrainConfig(dump="d", out="o", num_heads=8)
    with pytest.raises(ValueError, match="exclude"):
        TrainConfig.model_validate(
            {"dump": "d", "out": "o", "fc_norm": True, "norm_before_fc": True}
        )


def test_credentials_of_a_url_are_not_written(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    folder = RunFolder(config.out)
    with_secret = config.model_copy(update={"eval_dump": "s3://key:hunter2@bucket/dump"})
    with folder.locked():
        folder.write_config(resolved(with_secret))
        folder.check_config(with_secret)
    assert "hunter2" not in (Path(config.out) / "config.json").read_text()
