"""scripts/quality: its cells can be trained, its halves are apart, the peer gets our states."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scripts.losses.ceiling import ceiling
from scripts.quality.engine_side import tau_of
from scripts.quality.judge import HALVES, half_of, judge, samples_of
from scripts.quality.matrix import DEFAULT, EAGLE3, study_cells
from scripts.quality.peer_cells import SWEPT, PeerCell, best_swept, pack_tokens, peer_cells
from scripts.quality.peer_input import HELD_OUT, mask_with_states, write
from scripts.quality.peer_tables import compared
from scripts.quality.study import gains
from specpipe.schemas.records.sample import is_held_out, verifier_rows
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.storage.dump import Dump
from specpipe.stages.validate.serve.engine import Decoded
from tests.validate.small import Trained


@pytest.mark.parametrize("drafter", [EAGLE3, "peagle", "dflash", "dspark"])
def test_every_cell_is_a_training_of_ours(drafter: str) -> None:
    cells = list(study_cells(["a", "b"], drafter, range(2), {"max_steps": 5}))
    assert len({cell.name for cell in cells}) == len(cells)
    assert sum(cell.coordinate == DEFAULT for cell in cells) == 4
    for cell in cells:
        TrainConfig(dump="dump", out="out", drafter=cell.drafter, **cell.settings)
    for ours in (cell for cell in peer_cells({"a": 96}) if cell.is_ours):
        TrainConfig(dump="dump", out="out", **ours.settings(5, 2048))


@pytest.mark.parametrize("drafter", [EAGLE3, "dflash"])
def test_a_cell_changes_nothing_but_its_own(drafter: str) -> None:
    default, *others = study_cells(["a"], drafter, [0], {"max_steps": 5})
    for cell in others:
        assert cell.settings != default.settings, cell.name
        assert default.settings.items() <= cell.settings.items(), cell.name


def test_the_first_cells_say_most() -> None:
    cells = list(peer_cells({"a": 96, "b": 64}))
    assert len(cells) == len({cell.name for cell in cells}) == 3 * 3 * 2 * 2 * (len(SWEPT) + 2)
    first = cells[:6]
    assert {(cell.num_heads, cell.draft_vocab, cell.seed) for cell in first} == {(3, None, 0)}
    assert [cell.side for cell in first] == ["peer", "ours", "ours-time"] * 2
    assert {cell.draft_vocab for cell in cells if cell.material == "b"} == {None, 32}


def test_small_data_has_small_steps() -> None:
    assert [pack_tokens(n) for n in (1000, 300_000, 409_600, 10**7)] == [1024, 1024, 2048, 2048]


def test_the_peer_keeps_its_defaults() -> None:
    cell = PeerCell("a", 5, None, "peer", 1)
    assert cell.settings(5, 2048).keys() == {"ttt-steps", "epochs", "total-seq-len", "seed"}
    assert cell.at("peer-adamw").settings(5, 2048)["lr"] == 4e-3


def test_ratios_are_of_the_same_seeds() -> None:
    row = compared({"peer": {0: 2.0, 1: 4.0}, "ours": {1: 5.0}, "ours-time": {}}, "peer")
    assert row[:2] == ("3.000 ± 1.414", "3.000 ± 1.414 (peer)")
    assert row[2:] == ("5.000", "-", "1.250", "-", "1.250", "-")
    assert best_swept({"peer": 2.0, "peer-adamw": 2.5, "ours": 3.0}) == "peer-adamw"
    assert gains({0: 1.1, 1: 1.0}, {0: 1.0}) == "+10.00 %"


def test_tau_of_an_engine_is_of_whole_rounds() -> None:
    decoded = Decoded(
        temperature=0.0, output_ids=[[0] * 8], accepted_per_round=[[2, 0, 1, 2]],
        counters=None, seconds=1.0,
    )  # fmt: skip
    # The first token is the prompt's; rounds of 3, 1 and 2 tokens follow, and one that is cut.
    assert tau_of(decoded, 2) == pytest.approx(2.0)


def test_halves_make_the_whole(trained: Trained, exported: Path) -> None:
    dump = str(trained.dump)
    judged = judge(exported / "checkpoint", dump, dump, 3)
    halves = judged.curves["temperature_1"]
    refs = [ref for ref, _ in samples_of(Dump.open(dump))]
    assert {half_of(ref.prompt_id) for ref in refs} == set(HALVES)
    assert min(halves[half].num_rounds[-1] for half in HALVES) > 0
    # The same greedy drafts on the same text, whichever of the two it is given as.
    assert judged.curves["greedy"] == judged.curves["greedy_draft"]
    assert judged.tau("temperature_1", "choose") != judged.tau("temperature_1", "report")


def test_no_drafts_are_accepted_more_than_the_targets_own(trained: Trained, exported: Path) -> None:
    dump = str(trained.dump)
    judged = judge(exported / "checkpoint", dump, dump, 3)
    greedy, drawn = ceiling(Dump.open(dump), 3)
    assert drawn == pytest.approx(4.0, abs=0.02)
    assert judged.tau("temperature_1", "report") < drawn
    assert 1 < greedy < drawn


def test_the_peer_is_given_the_same_states(trained: Trained, tmp_path: Path) -> None:
    layers = Dump.open(str(trained.dump)).identity.layers
    given = write(str(trained.dump), tmp_path, layers)
    assert write(str(trained.dump), tmp_path, layers) == given
    pairs = list(samples_of(Dump.open(str(trained.dump))))
    assert int(len(pairs) * given.train_ratio) == given.num_train
    assert given.num_held_out == sum(is_held_out(ref.prompt_id, HELD_OUT) for ref, _ in pairs)
    by_ids = {tuple(sample.input_ids.tolist()): sample for _, sample in pairs}
    for path in (tmp_path / "hidden_states").iterdir():
        stored = load_file(path)
        sample = by_ids[tuple(stored["token_ids"].tolist())]
        aux_TLH = torch.tensor(sample.states.aux_TLH).view(torch.bfloat16)
        assert torch.equal(stored["hidden_states"][:, :-1], aux_TLH)
        mask_T = mask_with_states(sample.loss_mask)
        rows = set(verifier_rows(sample.loss_mask))
        assert {int(at) for at in np.flatnonzero(mask_T)} <= rows
        # Only the last of each span is left out: what follows it is not known.
        ends = int((np.diff(sample.loss_mask, append=np.uint8(0)) == 255).sum())
        assert mask_T.sum() == sample.loss_mask.sum() - ends
        assert stored["hidden_states"][mask_T.astype(bool), -1].abs().sum(-1).min() > 0
