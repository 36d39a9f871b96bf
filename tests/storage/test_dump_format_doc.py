"""What docs/dump-format.md shows is run, and what it states of the format is the code's."""

import re
from pathlib import Path

import pytest

from specpipe.schemas.dump import (
    DumpHeader,
    DumpIdentity,
    DumpIndex,
    DumpTotals,
    ObjectEntry,
    ShardManifest,
    TargetIdentity,
)
from specpipe.stages.storage.arrays import shard_arrays
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.samples import _STORED
from tests.storage.tiny import make_identity

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "dump-format.md").read_text()


def test_the_snippet_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(REPOSITORY)
    names: dict[str, object] = {}
    exec(compile(snippet, "docs/dump-format.md", "exec"), names)
    samples = Dump.open("tests/golden/dump-v1").shard(0).samples()
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{s.sample_id} {s.num_tokens} ({s.num_tokens}, 2, 4)" for s in samples]
    aux_float = names["aux_float"]
    # The first values of the golden dump: the bits 0x3C00 + 1000 and the next.
    assert aux_float[0, 0, :2].tolist() == [1.8125, 1.8203125]  # type: ignore[index]


@pytest.mark.parametrize(
    "record",
    [
        DumpHeader,
        DumpIdentity,
        DumpIndex,
        DumpTotals,
        ObjectEntry,
        ShardManifest,
        TargetIdentity,
    ],
)
def test_every_field_of_every_record_is_described(record: type[DumpHeader]) -> None:
    missing = [name for name in record.model_fields if f"`{name}`" not in TEXT]
    assert missing == []


def test_every_column_and_every_array_is_described() -> None:
    assert [name for name in _STORED.names if f"`{name}`" not in TEXT] == []
    for array in shard_arrays(make_identity(), 1, 1, 1, 1).values():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{array.name}` |"))
        assert f"| {', '.join(array.dimensions)} |" in row
        assert array.dtype.name in row
