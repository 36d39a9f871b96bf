"""The Airflow DAG of docs/: its commands are ours, and the real Airflow runs it."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from specpipe.pipeline.cli import specpipe
from tests.dump.conftest import rows, save_target, write_lines
from tests.schedulers import OPERATIONS, environment

DAG = OPERATIONS / "airflow_dag.py"
AIRFLOW = os.environ.get("SPECPIPE_AIRFLOW_PYTHON", "")
"""Python of an environment that has Airflow; `scripts/prove airflow` makes one."""

needs_airflow = pytest.mark.skipif(not AIRFLOW, reason="scripts/prove airflow runs it")


def test_every_command_is_one_of_ours() -> None:
    source = DAG.read_text()
    compile(source, str(DAG), "exec")
    defaults = dict(re.findall(r'"(\w+_options)": Param\("(.*?)"', source))
    commands = re.findall(r"'(specpipe .*)'", source)
    assert len(commands) == len(defaults) == 3
    for command in commands:
        for name, options in defaults.items():
            command = command.replace(f"${name}", options)
        _, name, *arguments = shlex.split(command)
        # Raises a UsageError for an option that does not exist.
        specpipe.commands[name].make_context(name, arguments)


@pytest.fixture(scope="module")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an Airflow with an empty database."""
    home = tmp_path_factory.mktemp("airflow")
    variables = environment(
        home,
        {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(OPERATIONS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        },
    )
    subprocess.run([AIRFLOW, "-m", "airflow", "db", "migrate"], env=variables, check=True)
    return variables


def run_dag(variables: dict[str, str], folder: Path, **conf: str) -> dict[str, Any]:
    file = folder / "conf.json"
    file.write_text(json.dumps({"folder": str(folder / "drafters"), **conf}))
    done = subprocess.run(
        [AIRFLOW, str(Path(__file__).with_name("airflow_run.py")), str(DAG), str(file)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_airflow
@pytest.mark.slow
def test_a_task_that_stopped_early_is_tried_again(
    airflow_home: dict[str, str], tmp_path: Path
) -> None:
    found = run_dag(
        airflow_home,
        tmp_path,
        target=str(save_target(tmp_path / "target")),
        data=str(write_lines(tmp_path / "data", rows(60))),
        dump_options="--backend hf",
        # A step each time.
        train_options="--max-steps 3 --time-limit 0.000001",
    )
    assert found["state"] == "success"
    assert found["tasks"]["dump"] == ["success", 1]
    assert found["tasks"]["train"] == ["success", 3]
    assert found["tasks"]["export"] == ["success", 1]
    [artifact] = tmp_path.glob("drafters/*/artifact/checkpoint/model.safetensors")
    assert artifact.stat().st_size > 0


@needs_airflow
@pytest.mark.slow
def test_a_training_that_diverged_is_tried_once(
    airflow_home: dict[str, str], tmp_path: Path
) -> None:
    found = run_dag(
        airflow_home,
        tmp_path,
        target=str(save_target(tmp_path / "target")),
        data=str(write_lines(tmp_path / "data", rows(60))),
        dump_options="--backend hf",
        train_options="--max-steps 3 --learning-rate 1e30",
    )
    assert found["state"] == "failed"
    assert found["tasks"]["dump"] == ["success", 1]
    assert found["tasks"]["train"] == ["failed", 1]


@needs_airflow
@pytest.mark.slow
def test_refused_input_is_tried_once(airflow_home: dict[str, str], tmp_path: Path) -> None:
    row = {"input_ids": [1, 2], "attention_mask": [1], "labels": [1, 2]}
    found = run_dag(
        airflow_home,
        tmp_path,
        target=str(save_target(tmp_path / "target")),
        data=str(write_lines(tmp_path / "data", [row])),
        dump_options="--backend hf",
    )
    assert found["state"] == "failed"
    assert found["tasks"]["dump"] == ["failed", 1]
    assert found["tasks"]["train"] == ["upstream_failed", 0]
