"""Run folders of strangers: what is read of them ends, and is what it should be."""

import os
from pathlib import Path

import pytest
import torch

from specpipe.schemas.errors import IntegrityError
from specpipe.schemas.records.checkpoint import (
    BEST_FILE,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    STATE_FILE,
)
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.runs.held_out import run_settings
from specpipe.stages.runs.metric_rows import metric_rows
from specpipe.stages.runs.pointers import read_pointer


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_place_of_a_file_ends_at_once(tmp_path: Path, kind: str) -> None:
    checkpoint = tmp_path / CHECKPOINTS_FOLDER / "step-00000001"
    checkpoint.mkdir(parents=True)
    for path in (
        tmp_path / METRICS_FILE,
        tmp_path / BEST_FILE,
        tmp_path / CONFIG_FILE,
        checkpoint / STATE_FILE,
    ):
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
    for read in (
        lambda: list(metric_rows(tmp_path)),
        lambda: read_pointer(tmp_path, BEST_FILE),
        lambda: run_settings(checkpoint),
        lambda: load_checkpoint(checkpoint),
    ):
        with pytest.raises(IntegrityError, match="a device, not a file"):
            read()


@pytest.mark.parametrize("name", [b"", b"\xff\xfe", b"../../etc", b"x" * 300, b"a\x1b[2J", b"a\0b"])
def test_a_pointer_names_a_checkpoint(tmp_path: Path, name: bytes) -> None:
    (tmp_path / BEST_FILE).write_bytes(name)
    with pytest.raises(IntegrityError, match="names no checkpoint"):
        read_pointer(tmp_path, BEST_FILE)
    (tmp_path / BEST_FILE).write_bytes(b"step-00000120-unevaluated\n")
    assert read_pointer(tmp_path, BEST_FILE) == "step-00000120-unevaluated"


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"[1]", b"\xff", b'{"step": ' + b"9" * 5000 + b"}"]
)
def test_rows_of_metrics_end_where_a_line_is_none(tmp_path: Path, line: bytes) -> None:
    good = b'{"step": 1, "draft_loss": NaN}\n'
    (tmp_path / METRICS_FILE).write_bytes(good + line + b"\n" + good)
    assert [row["step"] for row in metric_rows(tmp_path)] == [1]


@pytest.mark.parametrize("d2t", [torch.zeros(3), torch.tensor(0), torch.zeros(1, 3).long()])
def test_a_draft_vocabulary_is_a_list_of_integers(d2t: torch.Tensor) -> None:
    with pytest.raises(IntegrityError, match="d2t is no list"):
        VocabMap.from_tensors({"d2t": d2t, "t2d": torch.ones(3, dtype=torch.bool)})
