"""Runs that report to real loggers, are stopped, and go on; read back by the loggers' own readers.

trackio and mlflow want other versions than constraints.txt: `scripts/prove loggers` runs them in an
environment of their own.
"""

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from specpipe.schemas.errors import ConfigError, UnfinishedError
from specpipe.schemas.records.metrics import scalars
from specpipe.schemas.settings.train import LoggerName, TrainConfig
from specpipe.stages.train.loggers.opening import open_loggers
from specpipe.stages.train.loggers.reports import Reports
from specpipe.stages.train.run import run
from tests.processes import kill
from tests.train.conftest import MakeConfig, read_metrics
from tests.train.loggers.logger_readers import History, history, tensorboard_history

pytestmark = pytest.mark.filterwarnings("default")  # the loggers' packages warn of their own

NAMES: tuple[LoggerName, ...] = ("tensorboard", "wandb", "trackio", "mlflow")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A logger that is installed, which keeps everything below tmp_path."""
    pytest.importorskip(request.param)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return str(request.param)


@pytest.fixture(autouse=True)
def no_import_hooks() -> Iterator[None]:
    """W&B's runs hook every later import, of Ray for one, and tell a service that has ended."""
    yield
    if "wandb" in sys.modules:
        import_hooks = importlib.import_module("wandb.sdk.lib.import_hooks")
        import_hooks.unregister_all_post_import_hooks()


def expected(folder: Path) -> History:
    found: History = defaultdict(list)
    for row in read_metrics(folder, timings=True):
        for key, value in scalars(row).items():
            found[key].append((row["step"], value))
    return dict(found)


def same_history(one: History, other: History) -> None:
    assert one.keys() == other.keys()
    for key, points in other.items():
        assert [step for step, _ in one[key]] == [step for step, _ in points], key
        if "seconds" not in key and "wait" not in key and "memory" not in key:
            assert [v for _, v in one[key]] == pytest.approx([v for _, v in points], rel=1e-6)


def test_a_run_that_is_stopped_twice_is_one_run_without_gaps(
    name: str, make_config: MakeConfig
) -> None:
    config = make_config(log=name, log_project="tests", max_steps=5, eval_every=2)
    for _ in range(2):
        with pytest.raises(UnfinishedError):
            run(config.model_copy(update={"time_limit": 1e-6}))
    run(config)
    folder = Path(config.out)
    assert [row["step"] for row in read_metrics(folder)] == [0, 1, 2, 2, 3, 4, 4, 5, 5]
    same_history(history(name, folder), expected(folder))


@pytest.mark.slow
def test_a_run_that_is_killed_is_reported_again_from_its_checkpoint(
    name: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        log=name, log_project="tests", max_steps=7, eval_every=4, checkpoint_every=3
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    killed = Path(__file__).parents[1] / "train_killed.py"
    command = [sys.executable, str(killed), str(tmp_path / "config.json"), "step:5"]
    # A process of its own has a wandb-core of its own.
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    done = subprocess.run(command, check=False, capture_output=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run(config)
    folder = Path(config.out)
    reported, wanted = history(name, folder), expected(folder)
    for key in wanted:
        steps = [step for step, _ in reported[key]]
        if name == "tensorboard":
            assert len(set(steps)) == len(steps), (key, steps)
        # What waited to be sent when the process died may be missing; all that came after is not.
        assert {step for step, _ in wanted[key]} - set(steps) <= {3, 4, 5}, (key, steps)


def test_event_files_of_one_second_are_read_in_the_order_of_the_runs(
    make_config: MakeConfig,
) -> None:
    pytest.importorskip("tensorboard")
    config = make_config(log="tensorboard", max_steps=3)
    with pytest.raises(UnfinishedError):
        run(config.model_copy(update={"time_limit": 1e-6}))
    [earlier] = Path(config.out).glob("tensorboard/events.*")
    # Behind any file of the coming second.
    earlier.rename(earlier.with_name(f"events.out.tfevents.{int(time.time()) + 1}.zzz.9.9"))
    run(config)
    same_history(tensorboard_history(Path(config.out)), expected(Path(config.out)))


def test_no_secret_reaches_a_logger(name: str, tmp_path: Path) -> None:
    config = TrainConfig(
        dump="s3://key:hunter2@bucket/dump", out=str(tmp_path / "run"), log=(name,)
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "config.json").write_text(config.model_dump_json())
    program = (
        "import sys; from pathlib import Path;"
        "from specpipe.schemas.settings.train import TrainConfig;"
        "from specpipe.stages.train.loggers.opening import open_loggers;"
        "from specpipe.stages.train.loggers.reports import Reports;"
        "config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text());"
        "reports = Reports();\n"
        "with open_loggers(config, Path(config.out), -1, reports):\n"
        "    reports.add({'step': 1, 'draft_loss': 1.5})"
    )
    secret = "https://me:hunter2@host/x"
    command = [sys.executable, "-c", program, str(tmp_path / "config.json"), "--dump", secret]
    environment = os.environ | {"WANDB_API_KEY": "f" * 33 + "hunter2"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == ""
    (tmp_path / "config.json").unlink()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 1
    for path in files:
        assert b"hunter2" not in path.read_bytes(), path


def test_a_package_that_is_missing_is_named_before_anything_is_read(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)
        config = make_config(log=(name,), dump="memory://nothing-here")
        with pytest.raises(ConfigError, match=rf"pip install '\.\[log-{name}\]'"):
            run(config)
        assert not (Path(config.out) / "metrics.jsonl").exists()


def test_a_logger_that_cannot_be_opened_stops_before_the_first_step(
    make_config: MakeConfig,
) -> None:
    pytest.importorskip("tensorboard")
    config = make_config(log="tensorboard")
    Path(config.out).mkdir()
    (Path(config.out) / "tensorboard").write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match=r"--log tensorboard cannot be opened.*leave tensorboard"):
        run(config)
    assert not (Path(config.out) / "metrics.jsonl").exists()


def test_a_logger_whose_service_dies_warns_once_and_training_ends_well(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = make_config(log=("wandb", "tensorboard"))

    def kill_the_service(step: int, _total: int, figures: dict[str, float]) -> None:
        if step == 4 and "loss" in figures:
            for pid in wandb_services():
                kill(pid)

    with caplog.at_level(logging.WARNING):
        assert run(config, progress=kill_the_service).steps == 12
    warnings = [r.getMessage() for r in caplog.records if "--log wandb fails" in r.getMessage()]
    assert len(warnings) == 1
    same_history(tensorboard_history(Path(config.out)), expected(Path(config.out)))


def wandb_services() -> list[int]:
    """The processes of wandb-core that this one has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        if "wandb-core" in name and int(rest.split()[1]) == os.getpid():
            found.append(int(stat.parent.name))
    assert found
    return found


def test_loggers_that_are_left_out_are_not_forgotten(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """loggers.json of an earlier version, too."""
    pytest.importorskip("tensorboard")
    (tmp_path / "loggers.json").write_text('{"wandb": {"run_id": "x", "step": 2}, "mlflow": "y"}')
    config = make_config(out=str(tmp_path), log="tensorboard")
    with open_loggers(config, tmp_path, 5, Reports()):
        pass
    known = json.loads((tmp_path / "loggers.json").read_text())
    assert known == {"wandb": "x", "mlflow": "y", "tensorboard": "tensorboard"}


def test_every_logger_has_its_module_and_its_extra() -> None:
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    for name in NAMES:
        assert f"\nlog-{name} = [" in pyproject
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(f"specpipe.stages.train.loggers.{name}")
