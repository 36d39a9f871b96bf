"""The sample job, as cron, SLURM and Kubernetes run it: by the line and the files of docs/."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.job.test_job_manifests import kubernetes_job
from tests.pipeline.job.test_run import artifact
from tests.schedulers import OPERATIONS, SRUN, environment, start_all, write_command

ROOT = Path(__file__).parents[3]
CRON = re.findall(r"^(?:[\d*/]+ ){5} *(.*)$", (ROOT / "docs" / "jobs.md").read_text(), re.MULTILINE)
SCRIPT = ["bash", str(OPERATIONS / "slurm_job.sh")]
RESTARTS = {"SLURM_JOB_ID": "104", "SLURM_RESTART_COUNT": "0"}


def write_sample_job(folder: Path) -> Path:
    """The sample job on its shortest samples, and the settings it leaves open; in a folder."""
    body: dict[str, Any] = json.loads((ROOT / "sample_data" / "job.json").read_text())
    data = (ROOT / body["training_file"]).read_text().splitlines()
    (folder / "tokens.jsonl").write_text("\n".join(sorted(data, key=len)[:12]) + "\n")
    body |= {"model": str(ROOT / body["model"]), "training_file": "tokens.jsonl"}
    body["method"]["spec_draft"]["hyperparameters"]["batch_size"] = 4
    (folder / "job.json").write_text(json.dumps(body))
    (folder / "job.yaml").write_text("dump: {backend: hf}\ntrain: {held_out_fraction: 0.3}\n")
    return folder


@pytest.fixture(scope="module")
def by_slurm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that the SLURM script ran from its start to its end."""
    folder = write_sample_job(tmp_path_factory.mktemp("slurm"))
    write_command(folder / "bin", "srun", SRUN)
    write_command(folder / "bin", "scontrol", "exit 1")
    done = subprocess.run(
        [*SCRIPT, "job.json", "--config", "job.yaml", "--out", "out"],
        cwd=folder,
        env=environment(folder / "bin", RESTARTS),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["status"] == "succeeded"
    assert {stage["attempts"] for stage in report["stages"].values()} == {1}
    return folder / "out"


@pytest.mark.slow
def test_the_line_of_the_crontab(by_slurm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "drafters"
    folder.mkdir()
    write_sample_job(folder)
    [line] = CRON

    def run(limit: str) -> int:
        command = line
        for there, here in (
            ("/srv/drafters", folder),
            ("/srv/venv/bin/specpipe", "specpipe"),
            ("/data/job", tmp_path / "out"),
            ("--time-limit 540", f"--time-limit {limit}"),
        ):
            assert there in command
            command = command.replace(there, str(here))
        return subprocess.run(
            ["/bin/sh", "-c", command], env=environment(tmp_path, {}), timeout=300, check=False
        ).returncode

    codes = [run("0.01"), run("540"), run("540")]
    log = (folder / "job.log").read_text()
    assert codes == [5, 0, 0], log
    assert "the time limit is reached" in log
    assert log.count("nothing to do") == 1
    assert artifact(tmp_path / "out") == artifact(by_slurm)


@pytest.mark.slow
def test_a_slurm_job_whose_time_is_up_is_put_back_into_the_queue(tmp_path: Path) -> None:
    folder = write_sample_job(tmp_path)
    # As SLURM does it: the signal goes to the step's processes, not to the script.
    write_command(folder / "bin", "srun", 'echo $$ > step.pid; exec "$@"')
    write_command(folder / "bin", "scontrol", 'echo "$@" > scontrol')
    with subprocess.Popen(
        [*SCRIPT, "job.json", "--config", "job.yaml", "--out", "out"],
        cwd=folder,
        env=environment(folder / "bin", RESTARTS),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as script:
        while not (folder / "out" / "job_state.json").exists():
            assert script.poll() is None
            time.sleep(0.05)
        subprocess.run(["kill", "-TERM", (folder / "step.pid").read_text().strip()], check=True)
        printed, _ = script.communicate(timeout=300)
    assert script.returncode == 5
    assert "SIGTERM" in json.loads(printed.splitlines()[-1])["error"]
    assert (folder / "scontrol").read_text() == "requeue 104\n"


@pytest.mark.slow
def test_a_pod_goes_on_where_another_one_stopped(by_slurm: Path, tmp_path: Path) -> None:
    """The Kubernetes container's own command, in a folder that was lost after training."""
    write_sample_job(tmp_path)
    out = Path(shutil.copytree(by_slurm, tmp_path / "data" / "job"))
    shutil.rmtree(out / "checkpoint")
    _, _, container = kubernetes_job()
    command = [
        part.replace("/etc/specpipe", str(tmp_path))
        .replace("/data/", f"{tmp_path}/data/")
        .replace("--processes=4", "--processes=1")
        for part in container["command"] + container["args"]
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(tmp_path, {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout.splitlines()[-1])["stages"]
    did = [name for name, stage in stages.items() if not stage["result"].get("did_nothing")]
    assert did == ["export", "report"]
    assert artifact(out) == artifact(by_slurm)


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(5, "49", True), (5, "50", False), (0, "0", False), (2, "0", False), (4, "0", False)],
)
def test_which_slurm_jobs_are_put_back_into_the_queue(
    tmp_path: Path, code: int, restarts: str, requeued: bool
) -> None:
    bin = tmp_path / "bin"
    write_command(bin, "srun", f'echo "$@" "$SRUN_CPUS_PER_TASK"; exit {code}')
    write_command(bin, "scontrol", f'echo "$@" > {tmp_path}/scontrol')
    variables = {
        "SLURM_JOB_ID": "104",
        "SLURM_RESTART_COUNT": restarts,
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32",
    }
    arguments = ["job.json", "--out", "my folder"]
    [(found, printed, _)] = start_all([[*SCRIPT, *arguments]], [environment(bin, variables)])
    assert found == code
    assert printed == "specpipe run job.json --out my folder --processes 4 --json 32\n"
    assert (tmp_path / "scontrol").exists() == requeued


def test_the_options_of_the_slurm_script() -> None:
    text = (OPERATIONS / "slurm_job.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert len(options) == text.count("#SBATCH ")
    assert options["nodes"] == options["ntasks"] == "1"
    # Without B: the signal goes to the job; with it, to the script alone.
    assert re.fullmatch(r"TERM@\d+", options["signal"])
    assert "requeue" in options
    done = subprocess.run(SCRIPT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: sbatch slurm_job.sh" in done.stderr
