"""The job files of docs/operations do what their schedulers expect, with real dumps inside."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from specpipe.pipeline.terminal.settings import load_config
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.stages.dump.run import run
from tests.dump.conftest import rows, save_target, small_config, write_lines
from tests.dump.resume.test_dump_kill import contents
from tests.schedulers import (
    OPERATIONS,
    SRUN,
    environment,
    manifests,
    sbatch_variables,
    start_all,
    write_command,
)

NUM_SAMPLES = 6


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> DumpConfig:
    """A finished dump of one shard for each sample."""
    folder = tmp_path_factory.mktemp("alone")
    target, data = save_target(folder / "target"), write_lines(folder / "data", rows(NUM_SAMPLES))
    config = small_config(target, data, folder / "dump", shard_tokens=10)
    assert run(config).num_shards == NUM_SAMPLES
    return config


@pytest.fixture
def config_file(alone: DumpConfig, tmp_path: Path) -> Path:
    """The same dump, in a folder of the test's own."""
    config = alone.model_copy(update={"out": str(tmp_path / "dump")})
    path = tmp_path / "dump.yaml"
    path.write_text(config.model_dump_json(exclude_none=True))
    return path


@pytest.mark.slow
def test_the_tasks_of_a_slurm_array(alone: DumpConfig, config_file: Path, tmp_path: Path) -> None:
    bin = tmp_path / "bin"
    write_command(bin, "srun", SRUN)
    write_command(bin, "scontrol", "exit 1")
    tasks = [environment(bin, sbatch_variables(index, 3, 2)) for index in (3, 4)]
    script = ["bash", str(OPERATIONS / "slurm_array.sh"), str(config_file)]
    done = start_all([script] * 2, tasks)
    assert [code for code, _, _ in done] == [0, 0], done
    results = [json.loads(stdout.splitlines()[-1]) for _, stdout, _ in done]
    assert any(result["complete"] for result in results)
    assert contents(str(tmp_path / "dump")) == contents(alone.out)


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(5, "0", True), (6, "3", True), (5, "10", False), (3, "0", False)],
)
def test_a_slurm_task_that_can_go_on_is_put_back_into_the_queue(
    tmp_path: Path, code: int, restarts: str, requeued: bool
) -> None:
    bin = tmp_path / "bin"
    write_command(bin, "srun", f"exit {code}")
    write_command(bin, "scontrol", f'echo "$@" > {tmp_path}/scontrol')
    variables = {**sbatch_variables(4, 3, 2), "SLURM_RESTART_COUNT": restarts}
    script = ["bash", str(OPERATIONS / "slurm_array.sh"), "dump.yaml"]
    [(found, _, _)] = start_all([script], [environment(bin, variables)])
    assert found == code
    asked = tmp_path / "scontrol"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 104\n" if requeued else "")


def test_the_options_of_the_slurm_script() -> None:
    text = (OPERATIONS / "slurm_array.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert len(options) == text.count("#SBATCH ")
    assert re.fullmatch(r"0-\d+", options["array"])
    # Without B: the signal goes to the dump; with it, to the script alone.
    assert re.fullmatch(r"TERM@\d+", options["signal"])
    assert "requeue" in options
    assert options["ntasks"] == "1"


def kubernetes_objects() -> dict[str, Any]:
    return manifests("kubernetes_job.yaml")


def test_the_kubernetes_manifest_is_valid() -> None:
    import kubernetes_validate

    objects = kubernetes_objects()
    assert [*objects] == ["ConfigMap", "Job"]
    for each in objects.values():
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_the_kubernetes_job_says_what_the_dump_needs() -> None:
    job = kubernetes_objects()["Job"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    assert f"--worker-count={job['completions']}" in container["command"]
    # What podFailurePolicy demands.
    assert pod["restartPolicy"] == "Never"
    [codes] = [
        rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert codes["containerName"] == container["name"]
    assert {5, 6}.isdisjoint(codes["values"])
    [config] = [volume for volume in pod["volumes"] if "configMap" in volume]
    assert config["configMap"]["name"] == kubernetes_objects()["ConfigMap"]["metadata"]["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert f"--config={mounts[config['name']]}/dump.yaml" in container["command"]


@pytest.mark.slow
def test_the_indexes_of_a_kubernetes_job(alone: DumpConfig, s3_root: str, tmp_path: Path) -> None:
    """The manifest's own command, its ConfigMap mounted elsewhere, with two completions."""
    config = alone.model_copy(update={"out": f"{s3_root}/dump"})
    config_file = tmp_path / "dump.yaml"
    config_file.write_text(config.model_dump_json(exclude_none=True))
    job = kubernetes_objects()["Job"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    command = [
        part.replace("/etc/specpipe/dump.yaml", str(config_file)).replace(
            f"--worker-count={job['completions']}", "--worker-count=2"
        )
        for part in container["command"]
    ]
    pods = [environment(tmp_path, {"JOB_COMPLETION_INDEX": str(index)}) for index in range(2)]
    done = start_all([command] * 2, pods)
    assert [code for code, _, _ in done] == [0, 0], done
    assert contents(config.out) == contents(alone.out)


def test_the_configurations_are_valid_and_the_same(tmp_path: Path) -> None:
    mounted = tmp_path / "dump.yaml"
    mounted.write_text(kubernetes_objects()["ConfigMap"]["data"]["dump.yaml"])
    config = load_config(DumpConfig, OPERATIONS / "dump.yaml", {})
    assert config == load_config(DumpConfig, mounted, {})
