"""The trainee: the drafter, its optimiser, and the verifier's side of the loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.schemas.drafters.base import DrafterShape
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.dump import DumpIdentity, TextOrigin
from specpipe.schemas.records.metrics import EvalMetrics
from specpipe.schemas.settings.train import ResolvedTrainConfig
from specpipe.stages.acceptance.draft_vocab import VocabMap
from specpipe.stages.acceptance.loss.denominators import Denominators
from specpipe.stages.acceptance.loss.head_loss import HeadLoss
from specpipe.stages.acceptance.loss.heads import Heads
from specpipe.stages.acceptance.loss.settings import LossSettings
from specpipe.stages.acceptance.loss.state_loss import StateLoss
from specpipe.stages.acceptance.loss.verifier import Verifier
from specpipe.stages.acceptance.measure_sums import MeasureSums
from specpipe.stages.drafters.contract import DrafterModel
from specpipe.stages.drafters.parts.final_norm import FinalNorm
from specpipe.stages.drafters.registry import drafter_kind
from specpipe.stages.drafters.start import begin, of_checkpoint
from specpipe.stages.process.device import choose_device
from specpipe.stages.samples.batch import Batch
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.vocab import VocabStatistics
from specpipe.stages.target.head.verifier_head import VerifierHead, logit_scale
from specpipe.stages.train.data.dumps import chosen_layers
from specpipe.stages.train.optim.objective import Measured, Objective
from specpipe.stages.train.optim.optimizer import Optimizer
from specpipe.stages.train.ranks.ranks import Ranks
from specpipe.stages.train.ranks.sharding import is_sharded, shard, whole_norm


@dataclass(slots=True)
class Trainee:
    """A drafter in training, on this rank's device."""

    config: ResolvedTrainConfig
    shape: DrafterShape
    vocab: VocabMap
    model: DrafterModel
    optimizer: Optimizer
    verifier: Verifier
    ranks: Ranks
    state_loss: StateLoss | None = None

    @classmethod
    def build(
        cls,
        config: ResolvedTrainConfig,
        dump: Dump,
        vocab: VocabMap | None,
        shape: DrafterShape | None,
        ranks: Ranks | None = None,
        *,
        statistics: Callable[[], VocabStatistics] | None = None,
    ) -> "Trainee":
        """A fresh drafter (seeded), or one of the given shape and vocabulary to load weights into.

        The lm_head starts from the target's rows. A fresh draft vocabulary is chosen by
        `statistics`; default: those of the dump.
        """
        ranks = ranks or Ranks(choose_device(config.device))
        device = ranks.device
        if vocab is None or shape is None:
            start = begin(config, dump, chosen_layers(dump, config), statistics or dump.vocab)
        else:
            start = of_checkpoint(config, dump, shape, vocab)
        shape, vocab, model = start.shape, start.vocab, start.model
        model.to(device)
        if device.type == "cuda" and config.dtype == "bfloat16":
            # The loss multiplies float32 numbers: with TF32's 10 bits, more than bfloat16 has.
            torch.set_float32_matmul_precision("high")
        if config.shard and ranks.size > 1:
            shard(model, ranks)
        head = VerifierHead.load(dump.target_file, device, rows=vocab.target_ids_D.to(device))
        verifier = Verifier(
            logits=head.logits,
            draft_ids_V=vocab.draft_ids().to(device),
            target_ids_D=vocab.target_ids_D.to(device),
        )
        optimizer = Optimizer(model.named_parameters(), config, model.is_matrix)
        state_loss = None
        if config.state_loss:
            check_state_loss(dump.identity, shape)
            scale = logit_scale(dump.target_file)
            state_loss = StateLoss(config.state_loss, FinalNorm(head.norm), scale)
        return cls(config, shape, vocab, model, optimizer, verifier, ranks, state_loss)

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    @property
    def heads(self) -> Heads:
        return self.model.heads()

    @property
    def head_loss(self) -> HeadLoss:
        chunk_rows = max(1, self.config.loss_chunk_mib * 2**20 // (4 * self.vocab.size))
        return HeadLoss(self.verifier, chunk_rows)

    def hidden(self, batch: Batch) -> Tensor:
        """The drafter's outputs [K, N, H], float32 as its weights; bfloat16 inside by autocast."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"
        ):
            hidden_KNH: Tensor = self.model(batch)
        return hidden_KNH.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """Of what is trained."""
        return next(p.dtype for p in self.model.parameters() if p.requires_grad)

    def clip_gradients(self) -> Tensor:
        """Sum the gradients over the ranks, scale them down to the greatest norm; their norm."""
        parameters = list(self.model.parameters())
        if not is_sharded(self.model):
            self.ranks.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        return whole_norm(norm)

    def measure_sums(self, *, keep_spans: bool = False) -> MeasureSums:
        """To add measures to."""
        return MeasureSums(
            self.config.num_heads,
            keep_spans=keep_spans,
            eta=self.config.eta,
            samples_drafts=self.config.drafter.samples_drafts,
        )

    def measure(self, hidden_KNH: Tensor, batch: Batch) -> Tensor:
        """Measures [M, K, N] without gradient."""
        return self.head_loss.measures(hidden_KNH, self.heads, batch)

    def measures_of_fewer(self, batch: Batch) -> list[Tensor]:
        """Measures of passes with 1 .. K-1 heads, where what a head drafts depends on that."""
        if not drafter_kind(self.shape).depends_on_num_heads(self.shape):
            return []
        parts = (batch.with_heads(k) for k in range(1, batch.num_heads))
        return [self.measure(self.hidden(part), part) for part in parts]

    @property
    def objective(self) -> Objective:
        return Objective(self.config, self.device)

    def alpha_sums(self, hidden_KNH: Tensor, batch: Batch) -> Tensor:
        """Numerators of each head's mean alpha, float64 [K]."""
        return self.head_loss.alpha_sums(hidden_KNH, self.heads, batch)

    def loss(
        self, hidden_KNH: Tensor, batch: Batch, denominators: Denominators, settings: LossSettings
    ) -> tuple[Tensor, Tensor]:
        """A batch's part of the loss (differentiable) and its measures [M, K, N]."""
        loss, measures_MKN = self.head_loss(hidden_KNH, self.heads, batch, settings, denominators)
        extra = self.model.extra_loss(batch, hidden_KNH, measures_MKN, denominators)
        return loss if extra is None else loss + extra, measures_MKN

    def with_states(
        self,
        loss: Tensor,
        hidden_KNH: Tensor,
        batch: Batch,
        denominators: Denominators,
        settings: LossSettings,
    ) -> Tensor:
        """What is minimised: the loss, and that of states, which falls with the learning rate."""
        if self.state_loss is None:
            return loss
        of_heads_K = settings.head_weights_K * self.optimizer.factor
        return loss + self.state_loss(hidden_KNH, batch, of_heads_K, denominators)

    def eval_metrics(self, sums: MeasureSums, text: TextOrigin) -> EvalMetrics:
        """All metrics of what was measured; heads weigh as in a run without survival."""
        static = Measured(alpha=[0.0] * self.config.num_heads)
        return sums.eval_metrics(self.objective.settings(static), text)


def check_state_loss(identity: DumpIdentity, shape: DrafterShape) -> None:
    """Raise ConfigError where a drafter's outputs have no states of the target to be near to."""
    why = ""
    if identity.logits != "final":
        why = f"the dump holds logits {identity.logits}, and it takes final states"
    elif shape.width != identity.target.hidden_size:
        why = f"the drafter is {shape.width} wide, the target {identity.target.hidden_size}"
    if why:
        raise ConfigError(f"state_loss: {why}; leave it out")
