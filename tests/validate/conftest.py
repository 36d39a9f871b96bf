"""A tiny target, a dump of it and a drafter trained on that for a few steps; and the same of the
sample target, for vLLM. Real stages, real files."""

import shutil
from pathlib import Path

import pytest

from specpipe.schemas.settings.stages import DumpConfig, ExportConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as dump
from specpipe.stages.export.run import run as export
from specpipe.stages.train.run import run as train
from tests.papers import PAPERS
from tests.validate.small import SAMPLE_DATA, Trained, save_target, write_samples


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The tiny pipeline: 30 samples, a third of them held out, six steps, D < V."""
    root = tmp_path_factory.mktemp("pipeline")
    target = save_target(root / "target")
    data = write_samples(root / "data.jsonl", 30)
    dump(DumpConfig(target=str(target), data=(str(data),), out=str(root / "dump"), backend="hf"))
    train(
        TrainConfig(
            dump=str(root / "dump"),
            out=str(root / "run"),
            max_steps=6,
            eval_every=3,
            draft_vocab_size=64,
            held_out_fraction=0.3,
            batch_tokens=8192,
            **(PAPERS | {"learning_rate": 1e-2}),
        )
    )
    return Trained(target, root / "dump", root / "run")


@pytest.fixture(scope="session")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the tiny drafter; do not write into it."""
    out = tmp_path_factory.mktemp("exported")
    export(ExportConfig(checkpoint=str(trained.run), out=str(out)))
    return out


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    """A copy of the tiny artifact, to damage."""
    return Path(shutil.copytree(exported / "checkpoint", tmp_path / "artifact"))


@pytest.fixture(scope="session")
def sample_trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A drafter for the sample target, trained just enough to have drafts accepted."""
    root = tmp_path_factory.mktemp("sample")
    target = SAMPLE_DATA / "target"
    for name, num_samples in (("train", 160), ("held_out", 60)):
        text = (SAMPLE_DATA / name / "generated.jsonl").read_text(encoding="utf-8")
        data = root / f"{name}.jsonl"
        data.write_text("\n".join(text.splitlines()[:num_samples]) + "\n", encoding="utf-8")
        dump(
            DumpConfig(
                target=str(target),
                data=(str(data),),
                out=str(root / name),
                backend="hf",
                text_temperature=1.0,
            )
        )
    train(
        TrainConfig(
            dump=str(root / "train"),
            eval_dump=str(root / "held_out"),
            out=str(root / "run"),
            loss="kl",
            num_heads=5,
            draft_vocab_size=1024,
            max_steps=60,
            eval_every=60,
            batch_tokens=2048,
            **(PAPERS | {"learning_rate": 2e-3}),
        )
    )
    return Trained(target, root / "held_out", root / "run")
