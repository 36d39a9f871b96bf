"""Text that the target writes in transformers, with its states caught in the same pass.

Prompts of a batch are padded on the left: so what is written stands right behind its prompt in the
cache, where layers with a sliding window look for it.

Legend: B prompts of a batch, A of them that are still in the cache, P longest prompt, T longest
prompt and longest turn, L aux layers, H hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from specpipe.schemas.settings.stages import GenerateConfig
from specpipe.stages.target.backend import Captured, Generation, Prompt
from specpipe.stages.target.batches import batches
from specpipe.stages.target.files.turn_end import TurnEnd
from specpipe.stages.target.hf.sampling import Sampler
from specpipe.stages.target.written_tokens import Tally

if TYPE_CHECKING:
    from specpipe.stages.target.hf.backend import HfBackend


def generate(
    backend: "HfBackend", prompts: Sequence[Prompt], settings: GenerateConfig
) -> Iterator[Generation]:
    """Continue each prompt by one turn, in batches that have room for their longest turns."""
    turn_end = backend.turn_end(settings.stop)
    tally = Tally(len(prompts))

    def longest(prompt: Prompt) -> int:
        return len(prompt.input_ids) + prompt.max_new_tokens

    for batch in batches(prompts, backend.batch_tokens, longest):
        turns = _Turns(batch, settings, turn_end, tally)
        with backend.wide_logits():
            states = _write(backend, turns)
        yield from (turns.generation(at, states) for at in range(len(batch)))


@torch.no_grad()
def _write(backend: "HfBackend", turns: "_Turns") -> Captured:
    """Let the target write all turns; states [B, T, L, H] and [B, T, H], behind the padding.

    The last token of each turn goes through the target too, for its states.
    """
    ids_AT, mask_AT = (part.to(backend.device) for part in turns.padded())
    width, num_rows = ids_AT.shape[1], len(ids_AT)
    rows = list(range(num_rows))
    logits_AV, aux_APLH, final_APH, cache = backend.step(ids_AT, mask_AT, None)
    length = width + turns.most_new_tokens
    aux_BTLH = aux_APLH.new_zeros(num_rows, length, *aux_APLH.shape[2:])
    final_BTH = final_APH.new_zeros(num_rows, length, *final_APH.shape[2:])
    aux_BTLH[:, :width], final_BTH[:, :width] = aux_APLH, final_APH
    at = width
    while turns.going_on:
        if 2 * len(turns.going_on) <= len(rows) and _can_shrink(cache):
            kept = torch.tensor([rows.index(row) for row in turns.going_on], device=backend.device)
            cache.batch_select_indices(kept)
            logits_AV, mask_AT, rows = logits_AV[kept], mask_AT[kept], turns.going_on
        next_A = turns.extend(logits_AV, rows)
        mask_AT = torch.cat([mask_AT, mask_AT.new_ones(len(rows), 1)], 1)
        logits_AV, aux_A1LH, final_A1H, cache = backend.step(next_A[:, None], mask_AT, cache)
        aux_BTLH[rows, at], final_BTH[rows, at] = aux_A1LH[:, 0], final_A1H[:, 0]
        at += 1
    return Captured(aux_BTLH, final_BTH)


def _can_shrink(cache: Any) -> bool:
    """Whether rows can be taken out of the cache: not every kind of layer lets them go."""
    layers: Any = getattr(cache, "layers", ())
    return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)


class _Turns:
    """The turns of a batch as they grow."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        settings: GenerateConfig,
        turn_end: TurnEnd,
        tally: Tally,
    ) -> None:
        self._prompts = prompts
        self._tally = tally
        self._turn_end = turn_end
        self._sampler = Sampler(settings, [prompt.seed for prompt in prompts])
        self._new_ids: list[list[int]] = [[] for _ in prompts]
        self._stopped: set[int] = set()
        self._width = max(len(prompt.input_ids) for prompt in prompts)
        self.most_new_tokens = max(prompt.max_new_tokens for prompt in prompts)
        self.going_on = [at for at, prompt in enumerate(prompts) if prompt.max_new_tokens > 0]
        """The prompts whose turn has not ended, ascending."""

    def padded(self) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of the prompts, int64 [B, P]."""
        ids_BP = torch.zeros(len(self._prompts), self._width, dtype=torch.int64)
        mask_BP = torch.zeros_like(ids_BP)
        for row, prompt in enumerate(self._prompts):
            start = self._width - len(prompt.input_ids)
            ids_BP[row, start:] = torch.tensor(prompt.input_ids)
            mask_BP[row, start:] = 1
        return ids_BP, mask_BP

    def extend(self, logits_AV: Tensor, rows: Sequence[int]) -> Tensor:
        """Add a token to each turn that goes on; int64 [A], ignored for finished turns."""
        next_A = torch.zeros(len(rows), dtype=torch.int64, device=logits_AV.device)
        places = [rows.index(row) for row in self.going_on]
        chosen = self._sampler.choose(logits_AV[places], self.going_on)
        next_A[places] = chosen
        for row, token_id in zip(self.going_on, chosen.tolist(), strict=True):
            new_ids = self._new_ids[row]
            new_ids.append(token_id)
            if self._turn_end.reached(new_ids):
                self._stopped.add(row)
        num_before = len(self.going_on)
        self.going_on = [row for row in self.going_on if self._goes_on(row)]
        self._tally.add(num_tokens=num_before, num_ended=num_before - len(self.going_on))
        return next_A

    def generation(self, row: int, states: Captured) -> Generation:
        new_ids = self._new_ids[row]
        start = self._width - len(self._prompts[row].input_ids)
        stop = self._width + len(new_ids)
        return Generation(
            new_ids=np.array(new_ids, np.int32),
            finish="stop" if row in self._stopped else "length",
            states=Captured(states.aux_TLH[row, start:stop], states.final_TH[row, start:stop]),
        )

    def _goes_on(self, row: int) -> bool:
        is_full = len(self._new_ids[row]) == self._prompts[row].max_new_tokens
        return row not in self._stopped and not is_full
