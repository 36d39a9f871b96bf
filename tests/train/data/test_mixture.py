"""Several dumps at once, and some of a dump's layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError as PydanticError

from scripts.bench.counting_disk import CountingDisk
from specpipe.pipeline.cli import specpipe
from specpipe.schemas.errors import ConfigError, IdentityError
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.process.stop import StopQuestion
from specpipe.stages.runs.checkpoint import load_checkpoint
from specpipe.stages.samples.read_ahead import read_samples
from specpipe.stages.samples.reader import SampleReader
from specpipe.stages.samples.selection import split
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from specpipe.stages.storage.store.retry import DEFAULT_POLICY
from specpipe.stages.train.data.dumps import TrainingDumps
from specpipe.stages.train.run import run
from tests.storage.tiny import make_identity, make_pair, write_dump
from tests.train.conftest import MakeConfig, MakeDump, same_run


@pytest.fixture(scope="module")
def other(make_dump: MakeDump) -> Path:
    return make_dump(data_seed=5, num_samples=30)


class Interrupted(Exception):
    pass


def interrupt(step: int, _total: int, _figures: dict[str, float]) -> None:
    if step == 8:
        raise Interrupted


def test_a_mixture_trains_and_resumes_bit_for_bit(
    make_config: MakeConfig, other: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"mix": {str(other): 0.5}, "max_steps": 12}
    whole = make_config(**changes, out=str(tmp_path / "whole"))
    run(whole)
    config = make_config(**changes)
    with pytest.raises(Interrupted):
        run(config, progress=interrupt)
    run(config)
    same_run(Path(whole.out), Path(config.out))
    alone = run(make_config(out=str(tmp_path / "alone")))
    assert alone.dump_fingerprint != run(config).dump_fingerprint
    assert alone.fill == alone.num_tokens / (12 * 300)


def test_a_mixture_is_the_same_one_at_resume(make_config: MakeConfig, other: Path) -> None:
    config = make_config(mix={str(other): 0.5})
    with pytest.raises(Interrupted):
        run(config, progress=interrupt)
    for mix in ({str(other): 0.7}, {}):
        with pytest.raises(IdentityError, match="other dumps mixed with it"):
            run(make_config(mix=mix))


def test_what_a_mixture_consists_of(make_config: MakeConfig, dump: Path, other: Path) -> None:
    config = make_config(mix={str(other): 0.5})
    dumps = TrainingDumps.open(config, "metadata", StopQuestion(None))
    first, second = (Dump.open(str(root)) for root in (dump, other))
    mass_V = first.vocab().mass_V + 0.5 * second.vocab().mass_V
    assert dumps.vocab().mass_V.tolist() == mass_V.tolist()
    count_V = first.vocab().count_V + np.rint(0.5 * second.vocab().count_V)
    assert dumps.vocab().count_V.tolist() == count_V.tolist()
    reader = dumps.reader(config)
    refs = reader.refs()
    alone = [SampleReader(one, None).refs() for one in (first, second)]
    assert [ref.weight for ref in refs] == [1.0] * len(alone[0]) + [0.5] * len(alone[1])
    assert [(ref.index, ref.prompt_id) for ref in refs] == [
        (ref.index, ref.prompt_id) for part in alone for ref in part
    ]
    # Of each dump, the prompts are held out that would be without the other.
    for at, part in enumerate(alone):
        ids = {ref.prompt_id for ref in split(part, 0.2)[1]}
        mixed = {ref.prompt_id for ref in split(refs, 0.2)[1] if ref.weight == (1.0, 0.5)[at]}
        assert mixed == ids
        assert ids
    last = refs[-1]
    assert reader.place(last).endswith(f"of {second.folder.url}")
    [sample] = read_samples(reader, [last])
    [expected] = read_samples(SampleReader(second, None), [alone[1][-1]])
    assert sample.input_ids.tolist() == expected.input_ids.tolist()
    assert sample.states.aux_TLH.tobytes() == expected.states.aux_TLH.tobytes()


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"target_seed": 1}, "the target"), ({"layers": (1, 3)}, "the layers")],
)
def test_dumps_that_do_not_go_together(
    settings: dict[str, Any], what: str, make_config: MakeConfig, make_dump: MakeDump, dump: Path
) -> None:
    foreign = make_dump(**settings, num_samples=12)
    with pytest.raises(IdentityError, match=f"do not go together: {what}") as raised:
        run(make_config(mix={str(foreign): 1.0}))
    assert str(dump) in str(raised.value)
    assert str(foreign) in str(raised.value)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), "much"])
def test_weights_that_are_none(weight: object, make_config: MakeConfig, other: Path) -> None:
    with pytest.raises(PydanticError, match="mix"):
        make_config(mix={str(other): weight})


def test_some_layers_train_as_a_dump_of_them_alone(
    make_config: MakeConfig, make_dump: MakeDump, tmp_path: Path
) -> None:
    runs = []
    for name, held, given in (("some", (1, 2, 3), (1, 3)), ("alone", (1, 3), None)):
        config = make_config(
            dump=str(make_dump(layers=held)), out=str(tmp_path / name), layers=given, max_steps=6
        )
        run(config)
        runs.append(Path(config.out))
    same_run(*runs)
    latest = runs[0] / "checkpoints" / (runs[0] / "latest").read_text()
    assert load_checkpoint(latest).shape.aux_layers == (1, 3)


@pytest.mark.parametrize("layers", [(2, 4), (3, 1), (1, 1), (7,)])
def test_layers_that_the_dump_does_not_hold(
    layers: tuple[int, ...], make_config: MakeConfig
) -> None:
    with pytest.raises(ConfigError, match=r"--layers .* holds the layers 1, 2, 3"):
        run(make_config(layers=layers))


@pytest.mark.parametrize("format", [{}, {"shard_format": "parquet"}, {"compression": "zstd"}])
@pytest.mark.parametrize("alone", [False, True])
def test_two_of_five_layers_are_two_fifths_of_the_bytes(
    format: dict[str, Any], alone: bool, tmp_path: Path
) -> None:
    identity = make_identity(chunk_tokens=64, hidden=1024, num_layers=5, **format)
    # One supervised token each, so that nearly all is auxiliary states.
    pairs = [make_pair(identity, seed, 100, [(99, 100)]) for seed in range(4)]
    write_dump(str(tmp_path), identity, [pairs])
    read = []
    for layers in (None, (2, 4)):
        disk = CountingDisk()
        opened = Dump.open(str(tmp_path))
        folder = Folder(str(tmp_path), disk, str(tmp_path), DEFAULT_POLICY)
        reader = SampleReader(
            Dump(folder, opened.header, opened.manifests, opened.index), None, layers=layers
        )
        refs = reader.refs()
        before = disk.num_bytes
        states = reader.some(0, refs[:1])[0].states if alone else reader.whole(0).states
        assert states.aux_TLH.shape[1] == len(layers or identity.layers)
        read.append(disk.num_bytes - before)
    assert read[1] / read[0] == pytest.approx(2 / 5, rel=0.05)


def test_a_mix_is_read_from_flags_and_files(tmp_path: Path) -> None:
    settings = {"dump": "a", "out": "b", "mix": {"s3://bucket/dump": "0.5", "c=d": 2}}
    config = TrainConfig.model_validate(settings)
    assert config.mix == {"s3://bucket/dump": 0.5, "c=d": 2.0}


def test_a_dump_that_is_mixed_in_twice() -> None:
    command = ["train", "--dump", "a", "--out", "b", "--mix", "c=1", "--mix", "c=2"]
    refused = CliRunner().invoke(specpipe, command)
    assert refused.exit_code == 2
    assert "a dump is named twice" in refused.output
