"""What every architecture must do: one suite over the registry, through the command line.

An architecture that needs another target than a tiny Llama says so in `TARGETS`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from specpipe.schemas.drafters.registry import KINDS, shape_of_json
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import ConvertConfig
from specpipe.stages.drafters.artifact import read_files
from specpipe.stages.drafters.reading import read_as
from specpipe.stages.drafters.registry import architecture, drafter_kind, recognised
from specpipe.stages.export.convert import run as convert
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.pointers import resolve_checkpoint
from specpipe.stages.storage.dump import Dump
from specpipe.stages.validate.structure import check
from specpipe.stages.validate.target_facts import target_facts
from tests.drafters.mtp.targets import save_target as mtp_target
from tests.pipeline.in_process import Ended, specpipe
from tests.train.conftest import read_metrics, save_target, write_data

_SHARED = ("lm_head", "embed_tokens")

TARGETS: dict[str, Callable[[Path], Path]] = {"mtp": partial(mtp_target, family="mimo")}
"""By architecture: makes a target in a folder."""


def _usual_target(folder: Path) -> Path:
    return save_target(folder, seed=0)


@dataclass(frozen=True)
class Trained:
    name: str
    dump: Path
    whole: Path
    """A run without a stop."""
    resumed: Path
    """The same, stopped again and again."""
    artifact: Path
    flags: list[str]


def done(ended: Ended) -> Ended:
    assert ended.returncode == 0, ended.stderr
    return ended


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=list(KINDS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    name: str = request.param
    root = tmp_path_factory.mktemp(name)
    made = TARGETS.get(name, _usual_target)(root / "target")
    data = write_data(root / "data.jsonl", 60, seed=0)
    dump, whole, resumed, artifact = (root / part for part in ("dump", "whole", "resumed", "out"))
    done(specpipe("dump", "--target", made, "--data", data, "--out", dump, "--for", name,
                  "--backend", "hf", "--device", "cpu", "--shard-tokens", "400"))  # fmt: skip
    flags = f"--dump {dump} --device cpu --drafter {name} --num-heads 3 --batch-tokens 300".split()
    flags += "--pack-tokens 150 --held-out-fraction 0.2".split()  # noqa: SIM905
    flags += "--eval-every 4 --checkpoint-every 2".split()  # noqa: SIM905
    steps = ["--max-steps", "6", *flags]
    done(specpipe("train", "--out", whole, *steps))
    ended = specpipe("train", "--out", resumed, *steps, "--time-limit", "0.001")
    for _ in range(2):
        assert ended.returncode == 5, ended.stderr
        ended = specpipe("train", "--out", resumed, *steps, "--time-limit", "0.001")
    done(specpipe("train", "--out", resumed, *steps))
    done(specpipe("export", "--checkpoint", whole, "--out", artifact))
    return Trained(name, dump, whole, resumed, artifact, flags)


def test_a_resumed_run_is_the_whole_one(trained: Trained) -> None:
    assert read_metrics(trained.resumed) == read_metrics(trained.whole)
    one, other = (
        load_file(resolve_checkpoint(run) / "model.safetensors")
        for run in (trained.whole, trained.resumed)
    )
    assert one.keys() == other.keys()
    assert all(weight.equal(other[name]) for name, weight in one.items())


def test_its_shape_comes_back_from_a_checkpoint(trained: Trained) -> None:
    shape = load_checkpoint(resolve_checkpoint(trained.whole)).shape
    assert shape.architecture == trained.name
    assert shape_of_json(shape.model_dump_json().encode()) == shape


def test_trainer_and_proposal_are_one_drafter(trained: Trained) -> None:
    validation = json.loads((trained.artifact / "validation.json").read_text())
    assert validation["passed"]
    agreement = validation["replay"]["agreement"]
    assert agreement["num_starts"] > 100
    assert agreement["problem"] is None
    again = done(specpipe("validate", trained.artifact, "--dump", trained.dump, "--json"))
    assert again.last_json["replay"]["agreement"]["num_starts"] > 100


def test_one_draft_token_is_trained_and_replayed(trained: Trained, tmp_path: Path) -> None:
    steps: list[str | Path] = [*trained.flags, "--num-heads", "1", "--max-steps", "2"]
    done(specpipe("train", "--out", tmp_path / "run", *steps))
    done(specpipe("export", "--checkpoint", tmp_path / "run", "--out", tmp_path / "out"))
    # A drafter of more, served with one.
    one: list[str | Path] = ["--dump", trained.dump, "--speculative-tokens", "1", "--json"]
    found = done(specpipe("validate", trained.artifact, *one)).last_json
    assert found["replay"]["agreement"]["problem"] is None


def test_an_artifact_goes_there_and_back_in_every_format(trained: Trained, tmp_path: Path) -> None:
    formats = architecture(trained.name).formats
    first = next(iter(formats))
    for format in formats:
        other, back = tmp_path / format, tmp_path / f"{format}-back"
        converted = specpipe("convert", trained.artifact, "--out", other, "--format", format)
        if converted.returncode == 2 and "cannot hold" in converted.stderr:
            continue
        done(converted)
        done(specpipe("convert", other, "--out", back, "--format", first))
        for file in ("model.safetensors", "config.json"):
            written = trained.artifact / "checkpoint" / file
            assert (back / file).read_bytes() == written.read_bytes(), (format, file)


def test_an_artifact_with_a_tensor_too_many_or_too_few_is_refused(
    trained: Trained, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    for change in ("more", "less"):
        folder = tmp_path / change
        folder.mkdir()
        config = (trained.artifact / "checkpoint" / "config.json").read_bytes()
        (folder / "config.json").write_bytes(config)
        tensors = load_file(trained.artifact / "checkpoint" / "model.safetensors")
        # An engine takes the target's embedding and head where an artifact has none.
        name = next(
            n for n in sorted(tensors) if n.endswith("weight") and not n.startswith(_SHARED)
        )
        if change == "more":
            tensors["something.weight"] = tensors[name].clone()
        else:
            del tensors[name]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        ended = specpipe("validate", folder, "--dump", trained.dump)
        assert ended.returncode in (2, 4), ended.stderr
        assert ("something" if change == "more" else name.split(".")[-2]) in ended.stderr


def test_a_config_of_senseless_values_is_refused_in_a_line(
    trained: Trained, tmp_path: Path
) -> None:
    """Any value of it replaced, on the top or one level below: by both readers, or it is none of
    those that they ask for."""
    source = trained.artifact / "checkpoint"
    config = json.loads((source / "config.json").read_text())
    facts = target_facts(Dump.open(str(trained.dump)))
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    for number, (where, edited) in enumerate(_edits(config)):
        (folder / "config.json").write_text(json.dumps(edited))
        assert all("\n" not in line for line in check(folder, facts).problems), where
        with suppress(ConfigError):
            files = read_files(str(folder))
            artifact = read_as(recognised(files), files, None)
            format = next(iter(drafter_kind(artifact.shape).formats))
            out = str(tmp_path / str(number))
            convert(ConvertConfig(source=str(folder), out=out, format=format))


SENSELESS: tuple[Any, ...] = (None, -1, 10**30, "x", [["a"]], {})


def _edits(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in config.items():
        for odd in SENSELESS:
            yield f"{key} = {odd}", config | {key: odd}
            for below in value if isinstance(value, dict) else ():
                yield f"{key}.{below} = {odd}", config | {key: value | {below: odd}}


def test_a_warm_start_is_taken_or_refused(trained: Trained, tmp_path: Path) -> None:
    flags = [*trained.flags, "--warm-start", str(tmp_path / "nowhere"), "--max-steps", "1"]
    ended = specpipe("train", "--out", tmp_path / "run", *flags)
    assert ended.returncode == 2, ended.stderr
    takes = architecture(trained.name).takes_warm_start
    assert ("nowhere" if takes else "warm_start: a drafter") in ended.stderr


def test_a_run_begins_from_an_artifact(trained: Trained, tmp_path: Path) -> None:
    flags = [*trained.flags, "--init-from", str(trained.artifact), "--max-steps", "1"]
    done(specpipe("train", "--out", tmp_path / "run", *flags))
    first = read_metrics(tmp_path / "run")[0]["eval"]
    ends = [row["eval"] for row in read_metrics(trained.whole) if "eval" in row]
    best = max(row["replay_temperature_1"]["tau"][-1] for row in ends)
    assert first["replay_temperature_1"]["tau"][-1] == pytest.approx(best, abs=0.02)


def test_plan_and_report_know_it(trained: Trained, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done(specpipe("report", "--run", trained.whole, "--artifact", trained.artifact, "--out", page))
    assert trained.name in page.read_text()
