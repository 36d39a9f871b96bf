"""`specpipe prepare`: the file holds what a dump of the original holds."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import ConfigError, IdentityError, InputError, StoreError
from specpipe.schemas.settings.stages import DumpConfig, PrepareConfig
from specpipe.stages.dump_plan.prepared import plan_of
from specpipe.stages.prepare.run import PreparedData, prepare_data
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.text.rejected import Rejections
from tests.dump.conftest import Row, rows, save_target, write_lines
from tests.full_disk import files_may_hold

LONG = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 99}]}


def conversation(number: int) -> Row:
    return {
        "messages": [
            {"role": "user", "content": f"What is {number} plus {number}?"},
            {"role": "assistant", "content": f"It is [{2 * number}]."},
        ]
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    save_target(folder / "target")
    chats = [conversation(number % 9) for number in range(12)]
    write_lines(folder / "chats.jsonl", [*chats, LONG])
    write_lines(folder / "tokens.jsonl", rows(8))
    write_lines(folder / "texts.jsonl", [{"text": f"Plain text {number}."} for number in range(3)])
    return folder


def config(folder: Path, out: Path | str, **changes: Any) -> PrepareConfig:
    settings: dict[str, Any] = {
        "target": str(folder / "target"),
        "data": [str(folder / name) for name in ("chats.jsonl", "tokens.jsonl", "texts.jsonl")],
        "out": str(out),
        "context_length": 60,
    }
    return PrepareConfig(**(settings | changes))


def prepare(*arguments: str | Path) -> Result:
    return CliRunner().invoke(specpipe, ["prepare", *map(str, arguments)])


def planned(folder: Path, data: list[str]) -> list[tuple[str, int]]:
    """The samples of a dump of the data, by their ids, with their multiplicities."""
    dump = DumpConfig(
        target=str(folder / "target"), data=tuple(data), out="-", context_length=60, device="cpu"
    )
    plan, _ = plan_of(dump, folder / "target", Rejections(0), to_run=False)
    return [(sample.sample_id, sample.multiplicity) for shard in plan for sample in shard]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_dump_of_it_is_a_dump_of_the_original(folder: Path, tmp_path: Path, suffix: str) -> None:
    configured = config(folder, tmp_path / f"out{suffix}")
    result = prepare_data(configured, {})
    assert planned(folder, [configured.out]) == planned(folder, list(configured.data))
    counts = result.counts
    assert (counts.num_samples, counts.num_truncated, counts.num_rejected) == (24, 1, 0)
    (line,) = Path(result.rejected).read_text().splitlines()
    assert json.loads(line)["kind"] == "truncated"
    # What lies beside it is no input.
    assert planned(folder, [str(tmp_path)]) == planned(folder, [configured.out])
    assert not list(tmp_path.glob(".tmp-*"))


def test_on_a_store(folder: Path) -> None:
    configured = config(folder, "memory://prepare/out.parquet")
    assert not prepare_data(configured, {}).did_nothing
    assert planned(folder, [configured.out]) == planned(folder, list(configured.data))
    assert prepare_data(configured, {}).did_nothing


def test_the_same_inputs_make_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        out = tmp_path / name / "out.jsonl.gz"
        prepare_data(config(folder, out), {})
        made.append(out.read_bytes())
    assert made[0] == made[1]
    assert json.loads(gzip.decompress(made[0]).splitlines()[0]).keys() == {
        "input_ids",
        "attention_mask",
        "labels",
    }


def test_again_only_where_something_changed(folder: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", [conversation(1)])
    configured = config(folder, tmp_path / "out.jsonl", data=[str(data)])

    def again(changed: PrepareConfig = configured) -> PreparedData:
        return prepare_data(changed, {})

    assert not again().did_nothing
    assert again().did_nothing
    write_lines(data, [conversation(1), conversation(2)])
    changed = again()
    assert (changed.did_nothing, changed.counts.num_samples) == (False, 2)
    assert again().did_nothing
    assert not again(configured.model_copy(update={"loss_mask": "boundaries"})).did_nothing
    again()
    Path(configured.out).write_bytes(Path(configured.out).read_bytes()[:-1])
    assert not again().did_nothing
    # A kill between the file and its provenance.
    Path(f"{configured.out}.provenance.json").unlink()
    assert not again().did_nothing
    assert again().did_nothing


def test_a_file_of_somebody_else_stays(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    with pytest.raises(IdentityError, match="did not write it"):
        prepare_data(config(folder, out), {})
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("out", "data", "words"),
    [
        ("in.jsonl", "in.jsonl", "part of --data"),
        ("folder/out.jsonl", "folder", "part of --data"),
        ("out.jsonl", "*.jsonl", "part of --data"),
        ("out.txt", "in.jsonl", "must end in"),
        (".jsonl", "in.jsonl", "must end in"),
        ("out.parquet.gz", "in.jsonl", "must end in"),
    ],
)
def test_an_out_that_cannot_be(
    folder: Path, tmp_path: Path, out: str, data: str, words: str
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("in.jsonl", "folder/in.jsonl"):
        write_lines(tmp_path / name, [conversation(1)])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=words):
        prepare_data(config(folder, tmp_path / out, data=[str(tmp_path / data)]), {})
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_disk_that_takes_no_more(folder: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    data = write_lines(tmp_path / "data.jsonl", rows(400))
    prepare_data(config(folder, out), {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with (
        pytest.raises(StoreError, match=f"^cannot write in {tmp_path}: .*run the same") as caught,
        files_may_hold(20_000),
    ):
        prepare_data(config(folder, out, data=[str(data)]), {})
    assert caught.value.exit_code == 6
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert prepare_data(config(folder, out, data=[str(data)]), {}).counts.num_samples == 400


def test_refused_rows(folder: Path, tmp_path: Path) -> None:
    data = write_lines(
        tmp_path / "data.jsonl", [conversation(1), '{"messages": [', conversation(2)]
    )
    out = tmp_path / "out.jsonl"
    strict = config(folder, out, data=[str(data)])
    with pytest.raises(InputError, match=r"data\.jsonl:2"):
        prepare_data(strict, {})
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
    result = prepare_data(strict.model_copy(update={"max_rejected": 1}), {})
    assert (result.counts.num_samples, result.counts.num_rejected) == (2, 1)
    (line,) = Path(result.rejected).read_text().splitlines()
    assert json.loads(line)["source"] == {"file": str(data), "line": 2}


def test_a_person_sees_the_mask(folder: Path, tmp_path: Path) -> None:
    arguments = ("--target", folder / "target", "--data", folder / "chats.jsonl")
    out = tmp_path / "out.jsonl"
    done = prepare(*arguments, "--out", out)
    assert done.exit_code == 0, done.output
    assert "<|user|>What is 0 plus 0?<|end|><|assistant|>[It is [0].<|end|>]" in done.stderr
    assert "\x1b" not in done.output
    record = json.loads(Folder.open(str(tmp_path)).read("out.jsonl.provenance.json"))
    assert record["config"]["out"] == str(out)
    assert "specpipe" in record["versions"]
    write_lines(tmp_path / "hostile.jsonl", [{"text": "a\x1b[2Jb\nc"}])
    hostile = prepare(*arguments[:3], tmp_path / "hostile.jsonl", "--out", tmp_path / "h.parquet")
    assert "\\x1b[2Jb\nc]" in hostile.stderr
    assert "\x1b" not in hostile.stderr
    again = prepare(*arguments, "--out", out, "--json")
    values = json.loads(again.stdout.splitlines()[-1])
    assert (values["did_nothing"], values["counts"]["num_samples"]) == (True, 13)
