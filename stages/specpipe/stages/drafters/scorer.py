"""A drafter's weights under the trainer's implementation, on the samples of a dump.

Legend: K heads, N starts, H hidden size, M measures, R rows of a chunk, D draft vocabulary.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.errors import ConfigError
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import logits_of
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.drafters.contract import DrafterModel
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.samples.batch import Batch, DrafterSample, make_batch
from specpipe.stages.samples.final_layer import layers_for
from specpipe.stages.samples.read_ahead import read_samples
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head.target_tensors import StoredTarget
from specpipe.stages.target.head.verifier_head import VerifierHead

CHUNK_BYTES = 64 * 2**20


class Weights(Protocol):
    """A drafter's weights and where they lie: those of a checkpoint, or of an artifact."""

    @property
    def path(self) -> Path: ...
    @property
    def shape(self) -> DrafterShape: ...
    @property
    def vocab(self) -> VocabMap: ...
    @property
    def model(self) -> dict[str, Tensor]:
        """By the names of the model's parameters, float32; an artifact's own embedding too."""

    @property
    def num_heads(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """One sample: `hidden_KNH` is the input of the lm_head, `measures_MKN` as in
    loss/measures.py."""

    batch: Batch
    hidden_KNH: Tensor
    measures_MKN: Tensor
    fewer: list[Tensor]
    """Measures of passes with 1 .. K-1 heads, where what a head drafts depends on that."""


class TrainedDrafter:
    """Raises ConfigError where the dump lacks a layer that the drafter takes."""

    def __init__(self, drafter: Weights, dump: Dump) -> None:
        self.num_heads = drafter.num_heads
        self._depends = drafter_kind(drafter.shape).depends_on_num_heads(drafter.shape)
        self._dump = dump
        self._layers = drafter.shape.aux_layers
        kind = drafter_kind(drafter.shape)
        self.samples_drafts = kind.settings.samples_drafts
        held = layers_for(kind.settings, dump.identity)
        if not set(self._layers) <= set(held):
            raise ConfigError(
                f"{drafter.path} takes the layers {list(self._layers)}, but"
                f" {dump.folder.url} holds {list(held)}; give a --dump that holds them"
            )
        vocab = drafter.vocab
        self._target_ids_D = vocab.target_ids_D
        self._model = kind.scoring_model(
            drafter.shape, drafter.model, StoredTarget(dump.target_file), vocab.target_ids_D
        )
        head = VerifierHead.load(dump.target_file, torch.device("cpu"), rows=vocab.target_ids_D)
        verifier = Verifier(head.logits, vocab.draft_ids(), vocab.target_ids_D)
        self._wide: DrafterModel | None = None
        self._chunk_rows = max(1, CHUNK_BYTES // (4 * vocab.size))
        self._head_loss = HeadLoss(verifier, self._chunk_rows)

    @torch.no_grad()
    def measure(
        self, context_length: int | None, refs: Sequence[SampleRef]
    ) -> Iterator[ScoredSample]:
        """Each of these samples of the dump, cut at the context length, in the dump's order."""
        reader = SampleReader(self._dump, context_length, layers=self._layers)
        for sample in read_samples(reader, refs):
            yield self.measured(sample)

    @torch.no_grad()
    def measured(self, sample: DrafterSample) -> ScoredSample:
        """A sample that holds the drafter's layers, and no others."""
        batch = make_batch([sample], self.num_heads)
        hidden_KNH = self.hidden(batch)
        parts = [batch.with_heads(k) for k in range(1, self.num_heads)] if self._depends else []
        fewer = [self._measures(self.hidden(part), part) for part in parts]
        return ScoredSample(batch, hidden_KNH, self._measures(hidden_KNH, batch), fewer)

    def _measures(self, hidden_KNH: Tensor, batch: Batch) -> Tensor:
        return self._head_loss.measures(hidden_KNH, self._model.heads(), batch)

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Tensor:
        """Input of the lm_head [K, N, H]."""
        hidden_KNH: Tensor = self._model(batch)
        return hidden_KNH

    @torch.no_grad()
    def hidden_in_float64(self, batch: Batch) -> Tensor:
        """The same, computed in float64."""
        if self._wide is None:
            self._wide = deepcopy(self._model).double()
        hidden_KNH: Tensor = self._wide(batch)
        return hidden_KNH

    def logits(self, hidden_NX: Tensor, step: int) -> Tensor:
        """Of step `step`, from 1: [N, D], in the dtype that comes in."""
        heads = self._model.heads().ready_for(hidden_NX)
        return logits_of(hidden_NX, heads.of(step - 1))

    @torch.no_grad()
    def most_likely(self, hidden_NH: Tensor, step: int) -> Tensor:
        """The draft of greedy drafting, as a token id of the target: int64 [N]."""
        best = [
            self.logits(hidden_RH, step).argmax(-1)
            for hidden_RH in hidden_NH.split(self._chunk_rows)
        ]
        return self._target_ids_D[torch.cat(best)]
