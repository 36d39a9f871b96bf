"""A tiny run whose text attacks the page, exported; and what a real engine measured, on file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpipe.schemas.records.artifact import VALIDATION_FILE
from specpipe.schemas.settings.stages import DumpConfig, ExportConfig, ReportConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as dump
from specpipe.stages.export.run import run as export
from specpipe.stages.report.run import run as report
from specpipe.stages.train.run import run as train
from tests.dump.conftest import save_target, write_lines

ATTACK = (
    '</style></title><script>alert(1)</script><img src="http://h.test/x" onerror=alert(2)>&amp;'
)
SERVED = Path(__file__).with_name("served.json")
"""Parts of the validation.json of an artifact that vLLM 0.32 served for the sample target."""

MakePage = Callable[..., str]


class Finished:
    """Folders of one small pipeline."""

    def __init__(self, root: Path) -> None:
        self.root, self.dump = root, root / "dump<b>"
        self.run, self.artifact = root / "run", root / "artifact"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    made = Finished(tmp_path_factory.mktemp("report"))
    target = save_target(made.root / "target<i>")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{number} {ATTACK}"},
                {"role": "assistant", "content": f"{ATTACK} {number}, 100 % & so on\n"},
            ]
        }
        for number in range(12)
    ]
    data = write_lines(made.root / "data.jsonl", rows)
    dump(DumpConfig(target=str(target), data=(str(data),), out=str(made.dump), backend="hf"))
    train(
        TrainConfig(
            dump=str(made.dump),
            out=str(made.run),
            num_heads=2,
            max_steps=4,
            eval_every=2,
            learning_rate=1e-2,
            held_out_fraction=0.3,
        )
    )
    export(ExportConfig(checkpoint=str(made.run), out=str(made.artifact), step_cost=0.1))
    return made


@pytest.fixture
def served(finished: Finished, tmp_path: Path) -> Path:
    """The artifact's folder as if the engine of `served.json` had been measured."""
    folder = Path(shutil.copytree(finished.artifact, tmp_path / "served"))
    validation = json.loads((folder / VALIDATION_FILE).read_text("utf-8"))
    text = json.dumps(validation | json.loads(SERVED.read_text("utf-8")))
    (folder / VALIDATION_FILE).write_text(text, "utf-8")
    return folder


@pytest.fixture
def make_page(finished: Finished, tmp_path: Path) -> MakePage:
    """make_page(settings of the report): its HTML; also in tmp_path/page.html."""

    def make(**changes: Any) -> str:
        settings: dict[str, Any] = {
            "run": str(finished.run),
            "artifact": str(finished.artifact),
            "out": str(tmp_path / "page.html"),
        }
        report(ReportConfig(**(settings | changes)))
        return (tmp_path / "page.html").read_text("utf-8")

    return make
