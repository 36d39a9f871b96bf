"""The training loop: steps, metrics, evaluations, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specpipe.schemas.checkpoint import TrainState
from specpipe.schemas.dump import TextOrigin
from specpipe.schemas.errors import DivergedError, UnfinishedError
from specpipe.schemas.metrics import EvalMetrics
from specpipe.stages.drafter.acceptance import MeasureSums
from specpipe.stages.drafter.loss import mean_alpha
from specpipe.stages.drafter.sample_reader import SampleReader, SampleRef
from specpipe.stages.train.checkpoint import save_checkpoint
from specpipe.stages.train.evaluate import evaluate, selection_tau
from specpipe.stages.train.order import epoch_batches
from specpipe.stages.train.run_folder import RunFolder
from specpipe.stages.train.schedule import learning_rate
from specpipe.stages.train.trainee import Trainee

MOST_STEPS_AT_RISK = 500
"""Most steps between checkpoints where the configuration leaves it open."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with the step, the number of steps, and figures to show."""


@dataclass(slots=True)
class Loop:
    """Trains from `state` to its last step."""

    trainee: Trainee
    reader: SampleReader
    training: Sequence[SampleRef]
    eval_reader: SampleReader
    held_out: Sequence[SampleRef]
    eval_text: TextOrigin
    folder: RunFolder
    state: TrainState
    should_stop: Callable[[], str | None]
    """The reason to stop early, if there is one; asked after every step."""
    progress: Progress

    def run(self) -> TrainState:
        """Train to the end; raises UnfinishedError after saving when asked to stop early."""
        total, config = self.state.total_steps, self.trainee.config
        eval_every = config.eval_every or max(1, total // 10)
        checkpoint_every = config.checkpoint_every or min(eval_every, MOST_STEPS_AT_RISK)
        began, before = time.monotonic(), self.state.seconds
        if self.state.step == 0:
            metrics = self._evaluate()
            self.state = self.state.model_copy(update={"untrained": metrics})
        for epoch, index, refs in self._batches():
            self._step(epoch, index, refs)
            step = self.state.step
            seconds = before + time.monotonic() - began
            self.state = self.state.model_copy(update={"seconds": seconds})
            best = False
            if step % eval_every == 0 or step == total:
                best = self._keep_best(self._evaluate())
            reason = None if step == total else self.should_stop()
            if best or reason or step % checkpoint_every == 0 or step == total:
                self._save(best)
            if reason:
                raise UnfinishedError(
                    f"{reason}: stopped at step {step} of {total}, checkpoint saved in"
                    f" {self.folder.path}; run the same command again to continue"
                )
        return self.state

    def _batches(self) -> Iterator[tuple[int, int, list[SampleRef]]]:
        """(epoch, index in the epoch, samples) of every step that is left."""
        config = self.trainee.config
        epoch, index = self.state.epoch, self.state.batch_in_epoch
        while self.state.step < self.state.total_steps:
            batches = epoch_batches(
                self.training, config.seed, epoch, config.batch_tokens, config.batch_size
            )
            for at in range(index, len(batches)):
                if self.state.step == self.state.total_steps:
                    return
                yield epoch, at, batches[at]
            epoch, index = epoch + 1, 0

    def _step(self, epoch: int, index: int, refs: list[SampleRef]) -> None:
        trainee, config, step = self.trainee, self.trainee.config, self.state.step
        rate = learning_rate(
            step, self.state.total_steps, config.learning_rate, config.warmup_ratio
        )
        for group in trainee.optimizer.param_groups:
            group["lr"] = rate
        batch = self.reader.batch(refs, config.num_heads).to(trainee.device)
        trainee.optimizer.zero_grad(set_to_none=True)
        loss, measures_MKN = trainee.loss(trainee.hidden(batch), batch, self.state.previous_alpha)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), config.max_grad_norm)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            names = ", ".join(f"shard {r.shard_id} sample {r.index}" for r in refs[:8])
            raise DivergedError(
                f"loss {loss.item()} and gradient norm {norm.item()} at step {step + 1}"
                f" ({names}{', ...' if len(refs) > 8 else ''}); nothing was updated."
                " The checkpoint before it is kept; train again with a lower --learning-rate,"
                " in another --out"
            )
        trainee.optimizer.step()
        sums = MeasureSums(config.num_heads)
        sums.add(batch, measures_MKN)
        self.state = self.state.model_copy(
            update={
                "step": step + 1,
                "epoch": epoch,
                "batch_in_epoch": index + 1,
                "previous_alpha": mean_alpha(measures_MKN, batch).tolist(),
                "num_tokens": self.state.num_tokens + batch.num_tokens,
                "draft_loss_first": (
                    loss.item()
                    if self.state.draft_loss_first is None
                    else self.state.draft_loss_first
                ),
                "draft_loss_last": loss.item(),
            }
        )
        figures = {
            "draft_loss": loss.item(),
            "target_model_loss": sums.target_model_loss,
            "lk": sums.mean("lk"),
            "kl": sums.mean("kl"),
            "cross_entropy": sums.cross_entropy,
            "alpha": sums.mean("alpha"),
            "temperature_1": sums.sampling(greedy=False).model_dump(),
            "greedy": sums.sampling(greedy=True).model_dump(),
            "learning_rate": rate,
            "grad_norm": norm.item(),
        }
        self._report({"epoch": epoch, "tokens": batch.num_tokens, **figures})
        self.progress(step + 1, self.state.total_steps, {"loss": loss.item()})

    def _evaluate(self) -> EvalMetrics:
        metrics = evaluate(self.trainee, self.eval_reader, self.held_out, self.eval_text)
        self._report({"eval": metrics.model_dump()})
        tau = selection_tau(metrics, self.eval_text)
        self.progress(self.state.step, self.state.total_steps, {"tau": tau})
        return metrics

    def _keep_best(self, metrics: EvalMetrics) -> bool:
        best = self.state.best
        if best is not None and selection_tau(metrics, self.eval_text) <= selection_tau(
            best, self.eval_text
        ):
            return False
        self.state = self.state.model_copy(update={"best": metrics, "best_step": self.state.step})
        return True

    def _report(self, row: dict[str, Any]) -> None:
        self.folder.append_metrics({"step": self.state.step, **row})

    def _save(self, best: bool) -> None:
        keep = self.trainee.config.keep_checkpoints
        save_checkpoint(self.folder.path, self.trainee, self.state, best=best, keep=keep)
