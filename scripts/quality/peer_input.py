"""A dump as the files that speculators trains from: the same texts and states.

Its `prepare-data` and `generate-offline-data` leave a dataset of token ids and masks, and a file of
states for each row: the auxiliary layers, then the final state before the final norm. Samples that
we hold out come last, which is where it takes its own held-out part from.

A dump holds a final state only where a supervised token follows, and speculators asks for that of
each supervised token, also the last of a text. The mask leaves that one out.

Legend: T tokens, L auxiliary layers, H hidden size, S verifier rows.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from scripts.quality.judge import samples_of
from specpipe.schemas.records.sample import Mask, is_held_out, verifier_rows
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.samples.batch import DrafterSample
from specpipe.stages.storage.dump import Dump

HELD_OUT: float = TrainConfig.model_fields["held_out_fraction"].default


@dataclass(frozen=True)
class PeerInput:
    """What `write` wrote."""

    folder: Path
    num_train: int
    num_held_out: int
    num_tokens: int
    """Of the samples that are trained on."""
    aux: tuple[int, ...]

    @property
    def train_ratio(self) -> float:
        """A share that cuts between the two, however it is rounded down."""
        return (self.num_train + 0.5) / (self.num_train + self.num_held_out)


def write(url: str, folder: Path, layers: tuple[int, ...]) -> PeerInput:
    """Write `hidden_states/` of these layers and `rows.json`, which train_peer.write_dataset turns
    into a dataset with its own packages; or only say what was written before."""
    stamp = folder / "input.json"
    if not stamp.exists():
        found = _write(Dump.open(url), folder, layers)
        stamp.write_text(json.dumps(vars(found), default=str), encoding="utf-8")
    values = json.loads(stamp.read_text("utf-8"))
    return PeerInput(**values | {"aux": tuple(values["aux"]), "folder": folder})


def _write(dump: Dump, folder: Path, layers: tuple[int, ...]) -> PeerInput:
    states = folder / "hidden_states"
    states.mkdir(parents=True, exist_ok=True)
    pairs = list(samples_of(dump, layers))
    pairs.sort(key=lambda pair: is_held_out(pair[0].prompt_id, HELD_OUT))
    rows: dict[str, list[object]] = {"input_ids": [], "loss_mask": [], "seq_len": []}
    for number, (_, sample) in enumerate(pairs):
        ids_T = torch.tensor(sample.input_ids).long()
        tensors = {"hidden_states": all_states(sample), "token_ids": ids_T}
        save_file(tensors, states / f"hs_{number}.safetensors")
        rows["input_ids"].append(ids_T.tolist())
        rows["loss_mask"].append(mask_with_states(sample.loss_mask).tolist())
        rows["seq_len"].append(len(ids_T))
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    held_out = Counter(is_held_out(ref.prompt_id, HELD_OUT) for ref, _ in pairs)
    return PeerInput(
        folder=folder,
        num_train=held_out[False],
        num_held_out=held_out[True],
        num_tokens=sum(
            ref.num_tokens for ref, _ in pairs if not is_held_out(ref.prompt_id, HELD_OUT)
        ),
        aux=layers,
    )


def mask_with_states(mask_T: Mask) -> Mask:
    """1 where a token is supervised and the next one is too: those whose final state is stored."""
    with_state_T: Mask = mask_T.copy()
    with_state_T[:-1] &= mask_T[1:]
    with_state_T[-1] = 0
    return with_state_T


def all_states(sample: DrafterSample) -> Tensor:
    """[T, L + 1, H]; the final state is 0 where no supervised token follows."""
    aux_TLH = torch.tensor(sample.states.aux_TLH).view(torch.bfloat16)
    assert sample.states.final_SH is not None, "the dump is to be one of the mode `final`"
    final_SH = torch.tensor(sample.states.final_SH).view(torch.bfloat16)
    final_TH = torch.zeros_like(aux_TLH[:, 0])
    final_TH[torch.from_numpy(verifier_rows(sample.loss_mask))] = final_SH
    return torch.cat([aux_TLH, final_TH[:, None]], dim=1).contiguous()
