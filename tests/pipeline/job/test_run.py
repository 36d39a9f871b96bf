"""`specpipe run`: a job from its JSON to the artifact, killed and stopped on the way."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from specpipe.pipeline.cli import specpipe
from specpipe.pipeline.job.stage_process import StageProcess, is_unfinished
from specpipe.schemas.records.job import JobState
from specpipe.stages.storage.store.lock import locked
from tests.pipeline.job.conftest import Job, MakeJob

NUM_KILLS = int(os.environ.get("SPECPIPE_NUM_KILLS", "3"))
"""scripts/prove raises it."""
FILES = ("model.safetensors", "config.json")


def artifact(out: Path) -> list[bytes]:
    return [(out / "checkpoint" / name).read_bytes() for name in FILES]


def status(out: Path) -> dict[str, Any]:
    found = CliRunner().invoke(specpipe, ["run", "--status", str(out), "--json"])
    report: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return report


def check_whole(run: Job, out: Path, whole: Path) -> dict[str, Any]:
    """The report of a run that is to have left the files of a whole one."""
    code, report, notes = run.result()
    assert code == 0, notes
    assert artifact(out) == artifact(whole)
    return report


@pytest.mark.slow
def test_a_job_killed_again_and_again_leaves_the_files_of_a_whole_one(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job()
    code, report, notes = Job(job, tmp_path / "whole").result()
    assert code == 0, notes
    assert report["status"] == "succeeded"
    assert [Path(path).read_bytes() for path in report["artifact"]] == artifact(tmp_path / "whole")
    metrics = report["metrics"]
    for head in (1, 2):
        for name in ("lk", "kl", "cross_entropy"):
            assert metrics[f"train/{name}/head_{head}"] > 0
            assert metrics[f"validation/{name}/head_{head}"] > 0
        for name in ("acceptance_rate", "number_of_tokens", "system_efficiency"):
            assert metrics[f"validation/temperature_1.0/{name}/head_{head}"] > 0
    assert metrics["train/draft_loss"] > 0
    assert metrics["validation/target_model_loss"] > 0
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if json.loads(line)["split"] == "train"]
    assert steps == [*range(1, max(steps) + 1)]
    assert "<html" in (tmp_path / "whole" / "report.html").read_text()

    seconds = report["updated_at"] - report["created_at"]
    chance, killed, out = random.Random(5), 0, tmp_path / "killed"
    while killed < NUM_KILLS:
        run = Job(job, out)
        if run.wait(chance.uniform(0.5, 0.8 * seconds)) is None:
            run.kill()
            killed += 1
            if (out / "job_state.json").exists():
                found = status(out)["status"]
                if found == "succeeded":
                    # Killed after its last word.
                    assert artifact(out) == artifact(tmp_path / "whole")
                else:
                    assert found in ("running", "stopped")
        else:
            # It came to its end, after so many kills: the next ones are of a job from its start.
            check_whole(run, out, tmp_path / "whole")
            out = tmp_path / f"after-{killed}"
    report = check_whole(Job(job, out), out, tmp_path / "whole")

    again = Job(job, out).result()[1]
    assert again["did_nothing"]
    assert again["stages"] == report["stages"]
    other = make_job(hyperparameters={"n_epochs": 3})
    code, error, _ = Job(other, out).result()
    assert code == 2
    assert "another job" in error["error"]


@pytest.mark.slow
def test_a_job_that_is_stopped_goes_on(make_job: MakeJob, tmp_path: Path) -> None:
    job, out = make_job(), tmp_path / "out"
    first = Job(job, out)
    while not (out / "dump" / "dump.json").exists():
        assert first.wait(0.05) is None
    first.terminate()
    code, error, _ = first.result()
    assert code == 5
    assert "SIGTERM" in error["error"]
    assert status(out)["status"] == "stopped"
    code, error, _ = Job(job, out, "--time-limit", "0.01").result()
    assert code == 5
    assert "time limit" in error["error"]
    again = Job(job, out)
    while status(out)["running"] is None:
        assert again.wait(0.05) is None
    # What runs again has not finished, whatever became of it before.
    assert status(out)["stages"]["dump"]["finished_at"] is None
    assert again.result()[0] == 0
    report = status(out)
    assert report["status"] == "succeeded"
    assert report["stages"]["dump"]["attempts"] == 3


@pytest.mark.slow
def test_a_stage_that_fails_is_named_with_its_own_exit_code(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(data=[{"input_ids": [1, 2], "attention_mask": [1], "labels": [1, 2]}])
    code, error, notes = Job(job, tmp_path / "out").result()
    assert code == 3
    assert error["kind"] == "InputError"
    assert "training.jsonl" in error["error"]
    assert notes.count(error["error"]) == 1
    report = status(tmp_path / "out")
    assert report["status"] == "failed"
    assert report["error"]["exit_code"] == 3
    assert report["stages"]["dump"]["status"] == "failed"


def test_a_stage_that_is_asked_to_stop_while_it_starts(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as lock:
        stage = StageProcess(["dump"], {}, lock.fileno(), 1)
        stage.stop()
        # Left to itself, it would miss its --target.
        assert is_unfinished(stage.run())


def test_two_runs_do_not_share_a_folder(make_job: MakeJob, tmp_path: Path) -> None:
    with locked(tmp_path / "out", "this test has it"):
        code, error, _ = Job(make_job(), tmp_path / "out").result()
    assert code == 2
    assert "another `specpipe run`" in error["error"]


@pytest.mark.slow
def test_secrets_of_urls_are_written_nowhere(make_job: MakeJob, tmp_path: Path) -> None:
    url = "http://reader:hidden-word@127.0.0.1:9/rows.jsonl?token=hidden-word"
    code, _, _ = Job(make_job(training_file=url), tmp_path / "out").result()
    assert code != 0
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"hidden-word" not in path.read_bytes(), path


@pytest.mark.slow
def test_a_state_that_is_damaged_may_be_removed(make_job: MakeJob, tmp_path: Path) -> None:
    job, out = make_job(), tmp_path / "out"
    assert Job(job, out, "--time-limit", "0").result()[0] == 5
    state = out / "job_state.json"
    state.write_text(state.read_text()[:-10])
    code, error, _ = Job(job, out).result()
    assert code == 4
    assert f"{state} cannot be read" in error["error"]
    assert "remove it, and run the job again" in error["error"]
    state.unlink()
    (out / "dump").mkdir()
    (out / ".tmp-0-job_state.json").write_text("left by a kill")
    assert Job(job, out, "--time-limit", "0").result()[0] == 5
    state.unlink()
    code, error, _ = Job(make_job(seed=2), out).result()
    assert code == 2
    assert "another job" in error["error"]
    with pytest.raises(ValueError, match="status"):
        JobState.model_validate({})
