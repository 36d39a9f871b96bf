"""A whole comparison on a tiny dump, with EAGLE-3 and the toy."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError as PydanticError

from specpipe.pipeline.choose import candidates
from specpipe.pipeline.choose.compare import choose
from specpipe.pipeline.choose.judge import speedups
from specpipe.schemas.errors import UnfinishedError
from specpipe.schemas.records.choose import ChooseResult, StepTimes
from specpipe.schemas.records.served import StepTime
from specpipe.schemas.settings.choose import ChooseConfig
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as run_dump
from specpipe.stages.process.stop import stops_early
from specpipe.stages.target.vllm.support.servable import Servable, servable
from tests.pipeline.in_process import Ended, specpipe
from tests.train.conftest import MakeDump
from tests.validate.small import SAMPLE_DATA

STEPS = 6


def step_times(**seconds: Callable[[int], float]) -> StepTimes:
    """Of an engine whose step takes 1 s without drafter; `seconds` is of a round, by drafter."""

    def of(number: int | None, value: float) -> list[StepTime]:
        return [
            StepTime(batch_size=size, num_draft_tokens=number, seconds_per_step=value)
            for size in (1, 8)
        ]

    return StepTimes(
        target="target",
        vllm_version="0.32.0",
        without_drafter=of(None, 1.0),
        drafters={
            name: [time for n in range(4) for time in of(n, round_of(n) if n else 1.0)]
            for name, round_of in seconds.items()
        },
    )


def arguments(dump: Path, out: Path, *more: str | Path) -> list[str | Path]:
    settings = "--device cpu --draft-vocab-size 64 --optimizer adamw --batch-tokens 300"
    settings += f" --max-steps {STEPS} --held-out-fraction 0.3 --num-heads 3"
    return ["choose", "--dump", dump, "--out", out, *settings.split(), *more]


def done(ended: Ended) -> ChooseResult:
    assert ended.returncode == 0, ended.stderr
    values = ended.last_json
    return ChooseResult.model_validate({k: values[k] for k in ChooseResult.model_fields})


@pytest.fixture(scope="module")
def both(make_dump: MakeDump) -> Path:
    """A dump that EAGLE-3 and the toy read."""
    return make_dump(layers=(1, 2, 3, 4))


def test_choose_compares_by_given_step_times_and_recommends_the_faster_one(
    site: Path, both: Path, tmp_path: Path
) -> None:
    file = tmp_path / "times.json"
    file.write_bytes(step_times(eagle3=lambda n: 1 + n, toy=lambda _: 1.01).to_json())
    out = tmp_path / "choice"
    flags = arguments(both, out, "--budget", f"{2 * STEPS}steps", "--drafters", "eagle3,toy")
    ended = specpipe(*flags, "--step-times", file, "--json")
    result = done(ended)
    assert result.recommended == "toy"
    assert [one.drafter for one in result.compared] == ["toy", "eagle3"]
    toy, eagle = result.compared
    assert len(eagle.tau) == 3
    # It has no more.
    assert len(toy.tau) == 2
    assert toy.speedups[0].expected == pytest.approx([tau / 1.01 for tau in toy.tau])
    assert eagle.speedups[1].expected == pytest.approx(
        [tau / (1 + n) for n, tau in enumerate(eagle.tau, start=1)]
    )
    assert all(low <= tau <= high for one in result.compared for low, tau, high in
               zip(one.tau_low, one.tau, one.tau_high, strict=True))  # fmt: skip
    assert "Toy: " in result.reasons[0]
    assert "comes next" in result.reasons[1]
    assert "toy *" in ended.stderr
    settings = yaml.safe_load((out / "train.yaml").read_text("utf-8"))
    chosen = TrainConfig.model_validate({**settings, "out": "run"})
    assert (chosen.drafter.kind, chosen.num_heads) == ("toy", result.num_heads)
    assert (chosen.max_steps, chosen.held_out_fraction) == (STEPS, 0.3)
    assert (out / "runs" / "eagle3" / "best").exists()
    page = (out / "choose.html").read_text("utf-8")
    for words in ("tau by draft tokens", "speed-up at batch size 8", "comes next"):
        assert words in page

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    again = specpipe(*flags, "--step-times", file)
    assert "nothing to do" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    other = specpipe(*flags, "--step-times", file, "--seed", "1")
    assert other.returncode == 2
    assert "seed: 0 -> 1" in other.stderr

    # A version with another default began it: its file says how it was compared.
    plan = json.loads((out / "plan.json").read_text())
    for recipe in plan["recipes"].values():
        assert recipe["schedule"] == "wsd"
        recipe["schedule"] = "cosine"
    # The trainings are whole runs here; shorter ones have higher rates.
    assert plan["short_runs"]["eagle3"]["rate_times"] == 1
    plan["short_runs"]["eagle3"]["rate_times"] = 1.5
    del plan["short_runs"]["toy"]
    (out / "plan.json").write_text(json.dumps(plan))
    (out / "choose.json").unlink()
    shutil.rmtree(out / "runs")
    done(specpipe(*flags, "--step-times", file, "--json"))
    assert yaml.safe_load((out / "train.yaml").read_text("utf-8"))["schedule"] == "cosine"
    trained = json.loads((out / "runs" / "eagle3" / "config.json").read_text())
    rate = plan["recipes"]["eagle3"]["learning_rate"]
    assert trained["learning_rate"] == pytest.approx(1.5 * rate, rel=0.005)


def test_without_an_engine_tau_alone_is_compared_and_none_is_recommended(
    dump: Path, site: Path, tmp_path: Path
) -> None:
    out = tmp_path / "choice"
    flags = ["--budget", "1h", "--no-engine", "--json", "--drafters", "eagle3,toy"]
    ended = specpipe(*arguments(dump, out, *flags))
    result = done(ended)
    assert result.recommended is None
    assert [one.drafter for one in result.compared if one.speedups] == []
    assert "speeds are not known" in result.reasons[0]
    assert "--no-engine" in result.compared[0].no_speed
    # The dump holds no final state, which the toy takes.
    assert "dump --for toy" in result.left_out["toy"]
    assert "toy is left out" in ended.stderr
    plan = json.loads((out / "plan.json").read_text())
    assert plan["steps"] == STEPS


@pytest.mark.slow
def test_stopped_anywhere_it_goes_on_to_the_same_result(
    site: Path, both: Path, tmp_path: Path
) -> None:
    def config(name: str) -> ChooseConfig:
        settings: dict[str, Any] = {
            "dump": str(both), "out": str(tmp_path / name), "device": "cpu", "num_heads": 2,
            "draft_vocab_size": 64, "optimizer": "adamw", "batch_tokens": 300,
            "max_steps": STEPS, "held_out_fraction": 0.3, "budget": f"{2 * STEPS}steps",
            "drafters": "eagle3,toy", "engine": False,
        }  # fmt: skip
        return ChooseConfig.model_validate(settings)

    def run(name: str, stop_at: int | None = None) -> None:
        calls = []

        def told(*_: Any) -> None:
            calls.append(1)
            if len(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        with stops_early():
            choose(config(name), progress=told, say=lambda _: None)

    run("whole")
    for moment in (3, 12, 8):
        with pytest.raises(UnfinishedError, match="SIGTERM"):
            run("stopped", moment)
    run("stopped")
    whole, stopped = (tmp_path / name / "choose.json" for name in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budget", "1steps"], "give --budget 6steps or more"),
        (["--drafters", "eagle9"], "'eagle9' is no drafter"),
        (["--step-times", "none.json"], "none.json"),
        (["--serve-batch-sizes", "4"], "serve_batch_sizes is for an engine that is timed here"),
    ],
)
def test_what_cannot_be_compared_says_what_would_do(
    dump: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    out = tmp_path / "choice"
    ended = specpipe(*arguments(dump, out, "--drafters", "eagle3", "--no-engine", *more))
    assert ended.returncode == 2
    assert words in ended.stderr
    assert not (out / "plan.json").exists()


def _changed(drafter: str | None, **values: Any) -> Callable[[dict[str, Any]], None]:
    """Change the first step time of a drafter, or of the target alone."""

    def change(times: dict[str, Any]) -> None:
        rows = times["without_drafter"] if drafter is None else times["drafters"][drafter]
        rows[0].update(values)

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_changed(None, seconds_per_step=0), "without_drafter.0.seconds_per_step"),
        (_changed(None, seconds_per_step=1e308), "without_drafter.0.seconds_per_step"),
        (_changed("eagle3", seconds_per_step=-1.0), "drafters.eagle3.0.seconds_per_step"),
        (_changed("eagle3", seconds_per_step=float("nan")), "drafters.eagle3.0.seconds_per_step"),
        (_changed("eagle3", batch_size=-8), "drafters.eagle3.0.batch_size"),
        (_changed("eagle3", num_draft_tokens=-2), "drafters.eagle3.0.num_draft_tokens"),
        (_changed("eagle3", num_draft_tokens=None), "eagle3: a step does not say"),
        (_changed(None, num_draft_tokens=2), "an engine with a drafter"),
    ],
)
def test_step_times_that_none_measured_are_refused_before_any_training(
    dump: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], field: str
) -> None:
    times = json.loads(step_times(eagle3=lambda n: 1 + n).to_json())
    change(times)
    file, out = tmp_path / "times.json", tmp_path / "choice"
    file.write_text(json.dumps(times))
    ended = specpipe(*arguments(dump, out, "--drafters", "eagle3", "--step-times", file))
    assert ended.returncode == 2
    assert field in ended.stderr
    assert not (out / "probe").exists()


def test_a_speed_is_known_up_to_the_number_that_was_timed() -> None:
    times = step_times(eagle3=lambda _: 1.5)
    found = speedups(times, "eagle3", [1.5, 1.8, 2.0, 2.1, 2.2], parallel=True)
    assert [len(one.expected) for one in found] == [3, 3]


@pytest.mark.parametrize(
    ("drafters", "words"),
    [
        ({"dflash": 3}, "dflash: give a mapping of its settings"),
        ([{"dflash": {}}, "eagle3"], "a list holds names alone"),
        ([["dflash"]], "a list holds names alone"),
        (",", "a list holds names alone"),
        ({"dflash": {"kind": "eagle3"}}, "leave kind out"),
    ],
)
def test_drafters_of_another_form_are_refused(drafters: Any, words: str) -> None:
    with pytest.raises(PydanticError, match=words):
        ChooseConfig.model_validate({"dump": "d", "out": "o", "drafters": drafters})


def test_what_began_goes_on_with_another_engine_and_its_records_are_checked(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "choice"
    flags = arguments(dump, out, "--drafters", "medusa", "--no-engine", "--budget", f"{STEPS}steps")
    first = done(specpipe(*flags, "--json"))
    result = out / "choose.json"
    whole = json.loads(result.read_text())
    result.unlink()

    def none_served(*asked: Any) -> Servable:
        return replace(servable(*asked), how="no")

    monkeypatch.setattr(candidates, "servable", none_served)
    # A version with another default began it.
    plan = json.loads((out / "plan.json").read_text())
    plan["config"]["schedule"] = "cosine"
    (out / "plan.json").write_text(json.dumps(plan))
    again = done(specpipe(*flags, "--json"))
    assert again.compared == first.compared
    ended = specpipe(*flags, "--mix", f"{dump}=1")
    assert (ended.returncode, "complete search of another dump" in ended.stderr) == (2, True)
    ended = specpipe("tune", "--dump", dump, "--out", out, "--budget", "90steps")
    assert (ended.returncode, "a search of specpipe choose" in ended.stderr) == (2, True)
    (out / "choose.html").unlink()
    assert done(specpipe(*flags, "--json")).did_nothing
    assert (out / "choose.html").exists()
    for name, value in {"tau_low": [], "tau": [1.0]}.items():
        whole["compared"][0][name] = value
        result.write_text(json.dumps(whole))
        ended = specpipe(*flags)
        assert (ended.returncode, "medusa: not as many figures" in ended.stderr) == (4, True)


def test_a_dump_is_no_place_for_what_is_found(dump: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dump.rglob("*")}
    ended = specpipe(*arguments(dump, dump, "--drafters", "eagle3", "--no-engine"))
    assert (ended.returncode, "holds a dump; give another --out" in ended.stderr) == (2, True)
    ended = specpipe("train", "--dump", dump, "--out", dump, "--max-steps", "1")
    assert (ended.returncode, "holds a dump; give another --out" in ended.stderr) == (2, True)
    assert before == {path: path.stat().st_mtime_ns for path in dump.rglob("*")}


@pytest.mark.vllm
@pytest.mark.slow
def test_the_engine_is_timed_with_an_untrained_drafter_of_the_same_shape(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    text = (SAMPLE_DATA / "train" / "generated.jsonl").read_text(encoding="utf-8")
    data.write_text("\n".join(text.splitlines()[:16]) + "\n", encoding="utf-8")
    dump, out, again = (tmp_path / name for name in ("dump", "choice", "again"))
    target = str(SAMPLE_DATA / "target")
    run_dump(DumpConfig(target=target, data=(str(data),), out=str(dump), backend="hf"))
    flags = ["--drafters", "eagle3", "--budget", f"{STEPS}steps", "--json"]
    engine = ["--serve-batch-sizes", "2", "--serve-max-tokens", "32"]
    result = done(specpipe(*arguments(dump, out, *flags, *engine)))
    assert result.recommended == "eagle3"
    assert result.batch_sizes == [2]
    assert "by step times in vLLM" in result.reasons[0]
    times = StepTimes.model_validate_json((out / "step_times.json").read_bytes())
    assert [time.num_draft_tokens for time in times.without_drafter] == [None]
    assert [time.num_draft_tokens for time in times.drafters["eagle3"]] == [0, 1, 2, 3]
    (eagle,) = result.compared
    assert len(eagle.speedups[0].expected) == 3
    # What was measured here serves another run.
    flags = ["--step-times", str(out / "step_times.json"), *flags]
    other = done(specpipe(*arguments(dump, again, *flags)))
    assert other.compared[0].speedups == eagle.speedups
