"""What is trained: the drafter, its optimiser, and the verifier's side of the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specpipe.schemas.checkpoint import DrafterShape
from specpipe.schemas.train_config import TrainConfig
from specpipe.stages.drafter.batch import Batch
from specpipe.stages.drafter.eagle3 import Eagle3
from specpipe.stages.drafter.loss import (
    LossSettings,
    Verifier,
    batch_alpha,
    head_losses,
    hybrid_lambda,
)
from specpipe.stages.drafter.vocab import VocabMap
from specpipe.stages.storage.dump import Dump
from specpipe.stages.target.head import VerifierHead
from specpipe.stages.target.hf import choose_device
from specpipe.stages.train.optimizer import Optimizer
from specpipe.stages.train.start import fresh, of_checkpoint


@dataclass(slots=True)
class Trainee:
    """A drafter in training. `device` holds everything."""

    config: TrainConfig
    shape: DrafterShape
    vocab: VocabMap
    model: Eagle3
    optimizer: Optimizer
    verifier: Verifier
    device: torch.device

    @classmethod
    def build(
        cls, config: TrainConfig, dump: Dump, vocab: VocabMap | None, shape: DrafterShape | None
    ) -> "Trainee":
        """A fresh drafter (seeded), or one of the given shape and vocabulary to load weights into.

        The lm_head starts from the target's rows.
        """
        device = choose_device(config.device)
        if vocab is None or shape is None:
            start = fresh(config, dump, dump.identity.layers)
        else:
            start = of_checkpoint(config, dump, shape, vocab)
        shape, vocab, model = start.shape, start.vocab, start.model
        model.to(device)
        head = VerifierHead.load(dump.target_file, device, rows=vocab.target_ids_D.to(device))
        verifier = Verifier(
            logits=head.logits,
            draft_ids_V=vocab.draft_ids().to(device),
            target_ids_D=vocab.target_ids_D.to(device),
        )
        optimizer = Optimizer(model.named_parameters(), config)
        return cls(config, shape, vocab, model, optimizer, verifier, device)

    @property
    def chunk_rows(self) -> int:
        return max(1, self.config.loss_chunk_mib * 2**20 // (4 * self.vocab.size))

    def hidden(self, batch: Batch) -> Tensor:
        """The drafter's outputs [K, N, H] in float32; under autocast when bfloat16 is asked for."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"
        ):
            hidden_KNH: Tensor = self.model(batch)
        return hidden_KNH.float()

    def measure(self, hidden_KNH: Tensor, batch: Batch) -> Tensor:
        """Measures [M, K, N] without gradient."""
        with torch.no_grad():
            _, measures_MKN = head_losses(
                hidden_KNH.detach(),
                self.model.lm_head.weight.detach(),
                batch,
                self.verifier,
                None,
                self.chunk_rows,
            )
        return measures_MKN

    def loss(
        self, hidden_KNH: Tensor, batch: Batch, previous_alpha: list[float] | None
    ) -> tuple[Tensor, Tensor]:
        """The training loss (differentiable) and the measures [M, K, N] of a batch."""
        config = self.config
        lambda_K = None
        if config.loss == "lk_hybrid":
            if config.lambda_source == "previous_step" and previous_alpha is not None:
                alpha_K = torch.tensor(previous_alpha, device=self.device)
            else:
                alpha_K = batch_alpha(
                    hidden_KNH, self.model.lm_head.weight, batch, self.verifier, self.chunk_rows
                )
            lambda_K = hybrid_lambda(alpha_K, config.eta)
        decay = torch.arange(config.num_heads, device=self.device)
        settings = LossSettings(config.loss, config.head_decay**decay, lambda_K)
        return head_losses(
            hidden_KNH, self.model.lm_head.weight, batch, self.verifier, settings, self.chunk_rows
        )
