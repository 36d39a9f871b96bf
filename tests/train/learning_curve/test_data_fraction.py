"""Training on a share of the prompts: nested, whole prompts, apart from what is held out."""

import pytest

from specpipe.schemas.errors import IdentityError, InputError
from specpipe.schemas.records.sample import digest
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.samples.selection import share, split
from specpipe.stages.storage.dump import Dump
from specpipe.stages.train.run import run
from tests.train.conftest import MakeConfig


def prompts(refs: list[SampleRef]) -> set[str]:
    return {ref.prompt_id for ref in refs}


def test_a_larger_share_holds_a_smaller_one_and_nothing_that_is_held_out(
    make_config: MakeConfig,
) -> None:
    refs = SampleReader(Dump.open(make_config().dump), None).refs()
    training, held_out = split(refs, 0.2)
    eighth, half, all_ = (prompts(share(training, part)) for part in (0.125, 0.5, 1.0))
    assert eighth < half < all_ == prompts(training)
    assert not all_ & prompts(held_out)
    # As many as it says, about: held out or not says nothing about the share.
    assert 0.3 * len(training) < len(half) < 0.7 * len(training)
    assert 0 < len(eighth) < 0.3 * len(training)


def test_siblings_go_together() -> None:
    refs = [SampleRef(0, at, 10, digest(f"{at // 3}".encode())) for at in range(300)]
    for part in (0.1, 0.5):
        taken = share(refs, part)
        assert 0 < len(taken) < len(refs)
        assert all(sum(ref.prompt_id == one.prompt_id for ref in taken) == 3 for one in taken)


def test_a_run_trains_on_its_share_alone(make_config: MakeConfig, tmp_path: object) -> None:
    settings = {"max_steps": None, "num_epochs": 1, "eval_every": 50}
    half = run(make_config(**settings, data_fraction=0.5, out=f"{tmp_path}/half"))
    whole = run(make_config(**settings, out=f"{tmp_path}/whole"))
    refs = SampleReader(Dump.open(make_config().dump), None).refs()
    training, _ = split(refs, 0.2)
    assert whole.num_tokens == sum(ref.num_tokens for ref in training)
    assert half.num_tokens == sum(ref.num_tokens for ref in share(training, 0.5))
    assert half.best.num_positions == whole.best.num_positions
    with pytest.raises(IdentityError, match=r"data_fraction: 0.5 -> 0.25"):
        run(make_config(**settings, data_fraction=0.25, out=f"{tmp_path}/half"))


def test_a_share_without_a_sample_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"--data-fraction") as raised:
        run(make_config(data_fraction=1e-9))
    assert raised.value.exit_code == 3
