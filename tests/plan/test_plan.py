"""`specpipe plan`: what it predicts is what the dump takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import ConfigError, InputError, IntegrityError, UnfinishedError
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run
from specpipe.stages.plan.run import estimate, estimate_dump, length_histogram
from specpipe.stages.plan.training_memory import trainer_memory
from specpipe.stages.process.stop import StopQuestion
from specpipe.stages.samples.reader import SampleReader
from specpipe.stages.samples.selection import split
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.train.recipe import recipe_of
from specpipe.stages.train.trainee import Trainee
from tests.dump.conftest import rows, save_target, write_lines

SHARDS = ("--shard-tokens", "300", "--chunk-tokens", "64", "--context-length", "60")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    save_target(folder / "target")
    write_lines(folder / "data.jsonl", rows(50, longest=70))
    return folder


def config(folder: Path, out: Path, **changes: Any) -> DumpConfig:
    settings: dict[str, Any] = {
        "target": str(folder / "target"),
        "data": str(folder / "data.jsonl"),
        "out": str(out),
        "backend": "hf",
        "device": "cpu",
        "shard_tokens": 300,
        "chunk_tokens": 64,
        "context_length": 60,
    }
    return DumpConfig(**(settings | changes))


def plan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(specpipe, ["plan", *map(str, arguments)], terminal_width=80)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"format": "parquet"},
        {"logits": "topk:8"},
        {"logits": "full", "format": "parquet", "states": "int8"},
        {"states": "int8"},
        {"shard_tokens": 40},
    ],
    ids=["final", "parquet", "topk", "full-int8", "int8", "many-shards"],
)
def test_the_estimate_is_the_dump(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    configured = config(folder, tmp_path / "dump", **changes)
    predicted = estimate(configured)
    result = run(configured)
    made = Dump.open(configured.out)
    assert predicted.chosen.num_objects == len(made.entries)
    assert predicted.chosen.num_bytes == pytest.approx(result.num_bytes, rel=0.01)
    counted = (predicted.num_shards, predicted.num_samples, predicted.num_tokens)
    assert counted == (result.num_shards, result.num_samples, result.num_tokens)
    assert predicted.num_supervised == result.num_rows
    assert predicted.num_truncated == result.num_truncated > 0
    # Of the dump that is there by now, the same is said.
    of_dump = estimate_dump(configured.out)
    assert of_dump.chosen.num_objects == len(made.entries)
    assert of_dump.chosen.num_bytes == pytest.approx(result.num_bytes, rel=0.01)
    assert of_dump.lengths == predicted.lengths
    assert of_dump.num_truncated == predicted.num_truncated


def test_only_config_and_tokenizer_of_the_target_are_needed(folder: Path, tmp_path: Path) -> None:
    target = save_target(tmp_path / "target")
    (target / "model.safetensors").unlink()
    out = tmp_path / "dump"
    found, with_weights = (
        estimate(config(folder, out, target=str(target))),
        estimate(config(folder, out)),
    )
    assert found.trainer == with_weights.trainer
    assert found.chosen.num_objects == with_weights.chosen.num_objects
    assert found.chosen.num_bytes == pytest.approx(with_weights.chosen.num_bytes, rel=1e-3)
    assert not out.exists()


def test_a_package_that_a_quantised_target_lacks_is_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning: the dump may run on another machine than the plan."""
    shutil.copytree(folder / "target", tmp_path / "target")
    path = tmp_path / "target" / "config.json"
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantised))
    estimate(config(folder, tmp_path / "none", target=str(tmp_path / "target")))
    assert "cannot load target" in caplog.text
    assert "optimum" in caplog.text


def test_generated_text_is_predicted_at_its_most(folder: Path, tmp_path: Path) -> None:
    data = write_lines(
        tmp_path / "prompts.jsonl",
        [{"messages": [{"role": "user", "content": f"{number}?"}]} for number in range(9)],
    )
    configured = config(
        folder,
        tmp_path / "dump",
        data=str(data),
        generate={"max_tokens": 8, "samples_per_prompt": 2},
    )
    predicted = estimate(configured)
    result = run(configured)
    assert predicted.is_generated
    assert predicted.num_samples == result.num_samples == 18
    assert predicted.num_tokens >= result.num_tokens
    assert predicted.num_supervised >= result.num_rows
    assert predicted.chosen.num_bytes * 1.01 >= result.num_bytes


def test_the_trainer_takes_what_its_model_has(folder: Path, tmp_path: Path) -> None:
    found = estimate(config(folder, tmp_path / "dump"))
    configured = config(folder, tmp_path / "dump")
    run(configured)
    settings = found.recipe.config
    trainee = Trainee.build(settings, Dump.open(configured.out), None, None)
    parameters = list(trainee.model.parameters())
    memory = found.trainer
    assert memory.num_trained == sum(parameter.numel() for parameter in parameters)
    assert memory.weights == sum(p.numel() * p.element_size() for p in parameters)
    assert memory.optimizer == 2 * memory.weights
    assert memory.frozen == 4 * 2 * trainee.shape.vocab_size * trainee.shape.target_hidden_size
    halved = trainer_memory(
        folder / "target",
        found.identity,
        settings.model_copy(update={"batch_tokens": memory.batch_tokens // 2}),
        trust_remote_code=False,
    )
    assert halved.batch == memory.batch // 2
    assert halved.activations == memory.activations // 2


def test_the_trainer_does_what_was_planned(folder: Path, tmp_path: Path) -> None:
    configured = config(folder, tmp_path / "dump")
    planned = estimate(configured).recipe
    run(configured)
    assert estimate_dump(configured.out).recipe == planned
    settings = TrainConfig(dump="-", out="-")
    dump = Dump.open(configured.out)
    training, _ = split(SampleReader(dump, None).refs(), settings.held_out_fraction)
    found = recipe_of(settings, training, dump.identity, StopQuestion(None))
    assert (found.config, found.facts) == (planned.config, planned.facts)
    assert planned.num_steps == pytest.approx(found.num_steps, rel=0.1)


def test_lengths_go_by_powers_of_two_without_gaps() -> None:
    found = length_histogram([5, 7, 8, 40])
    assert [(x.first, x.last, x.num_samples) for x in found] == [
        (4, 7, 2),
        (8, 15, 1),
        (16, 31, 0),
        (32, 63, 1),
    ]


def test_a_person_reads_it_at_80_columns_without_colour(folder: Path) -> None:
    found = plan("--target", folder / "target", "--data", folder / "data.jsonl", *SHARDS)
    assert found.exit_code == 0, found.output
    assert "\x1b" not in found.output
    assert all(character.isascii() for character in found.output)
    assert max(len(line.rstrip()) for line in found.output.splitlines()) <= 80
    for words in ("final *", "topk:16", "full", "zarr", "parquet", "####", "moments", "supervised"):
        assert words in found.output


def test_json_is_the_last_line_of_stdout(folder: Path, tmp_path: Path) -> None:
    dump = config(folder, tmp_path / "dump")
    result = run(dump)
    found = plan(dump.out, "--json")
    values = json.loads(found.stdout.splitlines()[-1])
    assert values["num_tokens"] == result.num_tokens
    assert values["chosen"]["num_objects"] == len(Dump.open(dump.out).entries)
    assert values["trainer"]["total"] > values["trainer"]["weights"]
    # Of a small dump, all of it is read ahead.
    assert values["trainer"]["read_ahead"] == values["chosen"]["num_bytes"]


@pytest.fixture
def errors(folder: Path, tmp_path: Path) -> Callable[..., tuple[type, str]]:
    """errors(*arguments): the error of `specpipe plan` and its text."""

    def run_plan(*arguments: str | Path) -> tuple[type, str]:
        found = plan(*arguments)
        assert found.exception is not None, found.output
        return type(found.exception), str(found.exception)

    return run_plan


def test_what_goes_wrong(
    folder: Path, tmp_path: Path, errors: Callable[..., tuple[type, str]]
) -> None:
    target = ("--target", folder / "target")
    kind, text = errors(*target)
    assert kind is ConfigError
    assert "--data is missing" in text
    kind, text = errors("memory://plan/nothing")
    assert kind is ConfigError
    assert "no dump" in text
    kind, text = errors("memory://plan/nothing", *target)
    assert kind is ConfigError
    assert "not both" in text
    bad = write_lines(tmp_path / "bad.jsonl", ['{"input_ids": ['])
    kind, text = errors(*target, "--data", bad)
    assert kind is InputError
    assert "bad.jsonl:1" in text
    kind, text = errors(*target, "--data", folder / "data.jsonl", "--layers", "9")
    assert kind is ConfigError
    assert "layers" in text
    kind, text = errors(*target, "--data", folder / "data.jsonl", "--logits", "topk:261")
    assert kind is ConfigError
    assert "--logits topk:261: the target's vocabulary has 260 tokens" in text


def test_a_dump_whose_plan_is_not_written_yet(folder: Path, tmp_path: Path) -> None:
    dump = config(folder, tmp_path / "dump")
    run(dump)
    folder_of_it, whole = Folder.open(dump.out), estimate_dump(dump.out)
    # Another writer's complete dump has no stamp.
    folder_of_it.remove("stamp.json")
    assert estimate_dump(dump.out) == whole
    folder_of_it.remove("index.json")
    with pytest.raises(UnfinishedError, match="not written yet"):
        estimate_dump(dump.out)


def test_a_complete_dump_whose_plan_is_damaged(folder: Path, tmp_path: Path) -> None:
    dump = config(folder, tmp_path / "dump")
    run(dump)
    key = "plan/000001.parquet"
    Folder.open(dump.out).write(key, Folder.open(dump.out).read(key)[:-9])
    with pytest.raises(IntegrityError, match=key):
        estimate_dump(dump.out)
