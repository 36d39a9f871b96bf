"""The command line's contract: exit codes, --json, configuration with flags on top."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from specpipe.pipeline import cli
from specpipe.pipeline.launch.provenance import provenance
from specpipe.pipeline.terminal.settings import load_config
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import Config, DumpConfig, ExportConfig
from specpipe.schemas.settings.train import TrainConfig
from tests.pipeline.in_process import specpipe
from tests.train.conftest import save_target, write_data

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    save_target(folder / "target", 0)
    write_data(folder / "data.jsonl", 60, 0)
    return folder


@pytest.fixture(scope="module")
def stages(folder: Path) -> list[tuple[list[str | Path], dict[str, Any]]]:
    """The three commands, each with its result."""
    commands: list[list[str | Path]] = [
        ["dump", "--target", folder / "target", "--data", folder / "data.jsonl",
         "--out", folder / "dump", "--backend", "hf", "--shard-tokens", "400"],
        ["train", "--dump", folder / "dump", "--out", folder / "run", "--max-steps", "4",
         "--held-out-fraction", "0.3", "--batch-tokens", "300"],
        ["export", "--checkpoint", folder / "run", "--out", folder / "artifact"],
    ]  # fmt: skip
    done = [(command, specpipe(*command, "--json")) for command in commands]
    for _, ended in done:
        assert ended.returncode == 0, ended.stderr
    return [(command, ended.last_json) for command, ended in done]


def test_the_three_stages_and_their_second_runs(
    folder: Path, stages: list[tuple[list[str | Path], dict[str, Any]]]
) -> None:
    results = []
    for command, result in stages:
        assert result["did_nothing"] is False
        again = specpipe(*command, "--json")
        assert again.returncode == 0, again.stderr
        assert again.last_json["did_nothing"] is True
        results.append(result)
    assert results[0]["complete"] is True
    assert results[1]["steps"] == 4
    assert results[2]["levels"] == {"structure": True, "replay": True}
    for out in ("dump", "run", "artifact"):
        record = json.loads((folder / out / "provenance.json").read_text())
        assert record["versions"]["specpipe"] == "0.1.0"
    assert specpipe("verify", folder / "dump").returncode == 0
    shown = specpipe("inspect", folder / "dump")
    assert shown.returncode == 0
    assert "attainable mass" in shown.stderr


def test_a_person_gets_tables_at_80_columns_without_colour(
    stages: list[tuple[list[str | Path], dict[str, Any]]],
) -> None:
    done = specpipe(*stages[1][0])
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert "tau, greedy *" in done.stderr
    assert "* an estimate" in done.stderr
    text = done.stdout + done.stderr
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", [None, *cli.specpipe.commands])
def test_help_fits_80_columns(command: str | None) -> None:
    arguments = ["--help"] if command is None else [command, "--help"]
    shown = CliRunner().invoke(cli.specpipe, arguments, terminal_width=80)
    assert shown.exit_code == 0
    assert [line for line in shown.output.splitlines() if len(line) > 80] == []
    assert re.findall(r"--\w[\w-]*-$", shown.output, re.MULTILINE) == []


def test_a_process_ends_with_the_exit_code() -> None:
    """As a scheduler starts it; all the other tests here stay in this process."""
    command = [sys.executable, "-m", "specpipe", "dump", "--taget", "x", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["kind"] == "UsageError"
    assert "no such option" in done.stderr.lower()


def test_exit_codes(folder: Path, tmp_path: Path) -> None:
    target, data = folder / "target", folder / "data.jsonl"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input_ids": [1, 2')
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (2, "missing", ("dump", "--target", target)),
        (2, "no such option", ("dump", "--taget", target)),
        (2, "nothing.yaml", ("train", "--config", tmp_path / "nothing.yaml")),
        (3, "bad.jsonl:1", ("dump", "--target", target, "--data", bad, "--out", tmp_path / "d")),
        (2, "num_heads", ("train", "--dump", "x", "--out", tmp_path / "r", "--num-heads", "9")),
        (2, "", ("verify", tmp_path / "no-dump")),
        (2, "neither a checkpoint", ("export", "--checkpoint", tmp_path, "--out", tmp_path / "a")),
        (2, "layers", ("dump", "--target", target, "--data", data, "--out", tmp_path / "e",
                       "--layers", "1,99")),
    ]  # fmt: skip
    for code, words, arguments in cases:
        done = specpipe(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert words.lower() in done.stderr.lower(), (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    failed = specpipe(*cases[3][2], "--json")
    assert failed.last_json["kind"] == "InputError"
    assert specpipe("dump", "--taget", target, "--json").last_json["kind"] == "UsageError"


def test_exit_codes_of_what_surrounds_a_dump(folder: Path, tmp_path: Path) -> None:
    data = ("--target", folder / "target", "--data", folder / "data.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{")
    out, prepared = tmp_path / "dump", tmp_path / "prepared.jsonl"
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (0, "", ("plan", *data)),
        (2, "--data is missing", ("plan", "--target", folder / "target")),
        (3, "bad.jsonl:1", ("plan", "--target", folder / "target", "--data", bad)),
        (2, "--top-p: only with --generate", ("dump", *data, "--out", out, "--top-p", "0.9")),
        (2, "is not like", ("dump", *data, "--out", out, "--engine", "x")),
        (2, "must end in", ("prepare", *data, "--out", out)),
        (3, "bad.jsonl:1", ("prepare", "--target", folder / "target", "--data", bad,
                            "--out", prepared)),
        (0, "", ("prepare", *data, "--out", prepared)),
        (0, "", ("dump", *data[:2], "--data", prepared, "--out", out, "--backend", "hf")),
        (0, "", ("gc", out)),
        (0, "", ("plan", out)),
        (0, "", ("inspect", out, "--samples", "2")),
        (2, "no dump", ("gc", tmp_path)),
        (2, "--samples", ("inspect", out, "--samples", "-1")),
    ]  # fmt: skip
    for code, words, arguments in cases:
        done = specpipe(*arguments, "--json")
        assert done.returncode == code, (arguments, done.stderr)
        assert words.lower() in done.stderr.lower(), (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert ("kind" in done.last_json) == (code != 0)
    (out / "index.json").unlink()
    assert specpipe("gc", out).returncode == 5
    manifest = out / "shards" / "000000.manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    assert specpipe("gc", out, "--force").returncode == 4
    assert specpipe("inspect", out).returncode == 4


def test_damage_and_unfinished_have_their_own_codes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "dump"
    assert specpipe("dump", "--target", folder / "target", "--data", folder / "data.jsonl",
                    "--out", out, "--backend", "hf").returncode == 0  # fmt: skip
    index = (out / "index.json").read_bytes()
    (out / "index.json").unlink()
    assert specpipe("verify", out).returncode == 5
    (out / "index.json").write_bytes(index)
    chunk = sorted(p for p in out.glob("shards/*/states.zarr/aux_*/c/**/*") if p.is_file())[0]
    chunk.write_bytes(chunk.read_bytes()[:-1])
    damaged = specpipe("verify", out, "--json")
    assert damaged.returncode == 4
    (line,) = damaged.stdout.splitlines()
    assert "aux" in json.loads(line)["damages"][0]["key"]
    assert "aux" in damaged.stderr
    trained = specpipe("train", "--dump", out, "--out", tmp_path / "run")
    assert trained.returncode == 4
    assert "aux" in trained.stderr


@pytest.mark.usefixtures("stages")
def test_a_file_url_as_output(folder: Path) -> None:
    out = folder / "run-by-url"
    done = specpipe("train", "--dump", folder / "dump", "--out", f"file://{out}", "--max-steps",
                    "1", "--held-out-fraction", "0.3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "provenance.json").exists()


def test_one_file_may_stand_without_a_list() -> None:
    values = {"target": "t", "data": "a.jsonl", "out": "o"}
    assert DumpConfig.model_validate(values).data == ("a.jsonl",)
    wrong: dict[str, list[int]] = {"validation": [], "serve_speculative_tokens": [0]}
    for field, value in wrong.items():
        with pytest.raises(ValueError, match=field):
            ExportConfig.model_validate({"checkpoint": "c", "out": "o", field: value})


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *((command, "--validation") for command in ("export", "run", "validate")),
        ("export", "--validate"),
        ("run", "--validate"),
        ("validate", "--levels"),
    ],
)
def test_the_names_of_the_proofs(command: str, flag: str) -> None:
    arguments = [flag, "structure,serve"]
    if command == "validate":
        arguments += ["artifact", "--dump", "dump"]
    context = cli.specpipe.commands[command].make_context(command, arguments)
    assert context.params["validation"] == ("structure", "serve")


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("dump: a\nout: b\nnum_heads: 2\nloss: kl\n")
    config = load_config(TrainConfig, file, {"num_heads": 5, "loss": None, "out": None})
    assert (config.num_heads, config.loss, config.out) == (5, "kl", "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dump: a\nout: b\nlerning_rate: 1\n", "no setting 'lerning_rate'"),
        ("- dump\n", "not a mapping"),
        ("dump: [\n", "cannot read"),
        ("dump: a\nout: b\nloss: hinge\n", "loss"),
        ("!!python/object/apply:os.system ['true']\n", "cannot read"),
        ("out: b\n", "--dump is missing"),
        ("out: 2024-99-99\n", "cannot read"),
        ("out: " + "[" * 5000 + "\n", "cannot read"),
        ("out: &a [*a]\n", "more than 100000 values"),
        ("out: &a {b: *a}\n", "more than 100000 values"),
        (
            "a0: &a0 [1, 1, 1]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)),
            "more than 100000 values",
        ),
        ("dump: a\nout: b\nlearning_rate: .inf\n", "learning_rate"),
        ("dump: a\nout: b\nadam_betas: [2, 2]\n", "adam_betas"),
        ("dump: a\nout: b\nseed: 18446744073709551616\n", "seed"),
        ("dump: a\nout: b\nfc_norm: true\nnorm_before_fc: true\n", "yaml: norm_before_fc and fc"),
        ("dump: a\nout: b\nintermediate_size: 100000000000\n", "intermediate_size"),
    ],
)
def test_hostile_and_mistaken_configurations(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(TrainConfig, file, {})


DUMP = "target: a\ndata: b\nout: c\n"
TRAIN = "dump: a\nout: b\n"
EXPORT = "checkpoint: a\nout: b\n"


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (TrainConfig, TRAIN + "adam_betas: [0.9]", "adam_betas: too few values (got [0.9])"),
        (TrainConfig, TRAIN + "adam_betas: [1.0, 2.0]",
         "adam_betas: Input should be less than 1 (got 1.0)"),
        (TrainConfig, TRAIN + "loss: kl=0.5,tv=x",
         "loss: Input should be a valid number, unable to parse string as a number (got 'x')"),
        (ExportConfig, EXPORT + "validation: [foo]",
         "validation: Input should be 'structure', 'replay' or 'serve' (got 'foo')"),
        (DumpConfig, DUMP + "logits: topk",
         "logits: give final, full, or topk:N with the number to keep, as topk:64 (got 'topk')"),
        (DumpConfig, DUMP + "worker_index: x",
         "worker_index: give a number from 0 on, or auto (got 'x')"),
        (DumpConfig, DUMP + "generate: true",
         "generate: true and false are no values of this setting: give its settings, or {} for the"
         " defaults (got True)"),
        (DumpConfig, DUMP + "generate: {top_p: 2, max_token: 1}",
         "generate.top_p: Input should be less than or equal to 1 (got 2); there is no setting"
         " 'generate.max_token'"),
        (DumpConfig, "target: a\nout: c",
         "--data is missing (give the flag, or data: in the file)"),
    ],
)  # fmt: skip
def test_one_line_for_each_setting_that_is_wrong(
    kind: type[Config], text: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(kind, file, {})
    assert str(caught.value) == f"{file}: {says}"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dump", DumpConfig),
        ("dump_held_out", DumpConfig),
        ("train", TrainConfig),
        ("export", ExportConfig),
    ],
)
def test_sample_configurations(name: str, kind: Any) -> None:
    values = yaml.safe_load((ROOT / "sample_data" / f"{name}.yaml").read_text())
    assert kind.model_validate(values)


def test_no_secret_is_written() -> None:
    config = {"dump": "s3://me:hunter2@bucket/dump", "out": "https://h/x?token=t0p&part=1"}
    written = provenance(config).decode()
    assert "hunter2" not in written
    assert "t0p" not in written
    assert "s3://bucket/dump" in written
