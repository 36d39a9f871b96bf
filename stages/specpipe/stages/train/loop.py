"""The training loop: steps, metrics, evaluations, checkpoints."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from specpipe.schemas.checkpoint import TrainState
from specpipe.schemas.dump import TextOrigin
from specpipe.schemas.errors import DivergedError, UnfinishedError
from specpipe.schemas.metrics import EvalMetrics
from specpipe.stages.drafter.acceptance import MeasureSums
from specpipe.stages.drafter.batch import Batch, make_batch
from specpipe.stages.drafter.loss import mean_alpha
from specpipe.stages.drafter.read_ahead import ReadAhead
from specpipe.stages.drafter.sample_reader import SampleReader, SampleRef
from specpipe.stages.drafter.shard_window import Read
from specpipe.stages.train.checkpoint import save_checkpoint
from specpipe.stages.train.early_stop import stops_early
from specpipe.stages.train.evaluate import evaluate, selection_tau
from specpipe.stages.train.loggers.reports import Reports
from specpipe.stages.train.memory import memory_mib
from specpipe.stages.train.order import (
    StepRead,
    eval_every,
    evaluates_after,
    evaluation_reads,
    planned_reads,
)
from specpipe.stages.train.run_folder import RunFolder
from specpipe.stages.train.schedule import rate_factor
from specpipe.stages.train.trainee import Trainee

MOST_STEPS_AT_RISK = 500
"""Most steps between checkpoints where the configuration leaves it open."""

STOP_PATIENCE = 2.0
"""Seconds of waiting for data after which a run looks whether it should stop."""

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
    reports: Reports
    should_stop: Callable[[], str | None]
    """The reason to stop early, if there is one; asked after every step and while data is late."""
    progress: Progress

    _batches: ReadAhead[Read, Batch] = field(init=False)
    _before: TrainState = field(init=False)
    _began: float = field(init=False)

    def run(self) -> TrainState:
        """Train to the end; raises UnfinishedError after saving when asked to stop early."""
        config = self.trainee.config
        evaluation = evaluation_reads(self.eval_reader, self.held_out, config.batch_tokens)
        reads = planned_reads(config, self.state, self.reader, self.training, evaluation)
        self._before, self._began = self.state, time.monotonic()
        with ReadAhead(
            reads, lambda samples: make_batch(samples, config.num_heads), config.prefetch_mib
        ) as self._batches:
            self._run(len(evaluation))
        return self.state

    def _run(self, num_eval_batches: int) -> None:
        total, config = self.state.total_steps, self.trainee.config
        checkpoint_every = config.checkpoint_every or min(
            eval_every(total, config), MOST_STEPS_AT_RISK
        )
        if self.state.step == 0:
            metrics = self._evaluate(num_eval_batches)
            self.state = self.state.model_copy(update={"untrained": metrics})
        while self.state.step < total and not stops_early(self.state, config):
            self._step()
            step = self.state.step
            best = False
            if evaluates_after(step, total, config):
                best = self._keep_best(self._evaluate(num_eval_batches))
            is_last = step == total or stops_early(self.state, config)
            reason = None if is_last else self.should_stop()
            if best or reason or step % checkpoint_every == 0 or is_last:
                self._save(best)
            if reason:
                raise self._stopped(reason)

    def _stopped(self, reason: str) -> UnfinishedError:
        step, total = self.state.step, self.state.total_steps
        return UnfinishedError(
            f"{reason}: stopped at step {step} of {total}, checkpoint saved in"
            f" {self.folder.path}; run the same command again to continue"
        )

    def _next(self) -> tuple[StepRead, Batch]:
        """What the next step reads; stops while it is late, if asked to."""
        while not self._batches.is_ready(STOP_PATIENCE):
            if reason := self.should_stop():
                if self.state.step == 0:
                    raise UnfinishedError(
                        f"{reason}: stopped before the first step, which waited for data from"
                        f" {self.reader.dump.folder.url}; run the same command again"
                    )
                self._save(best=False)
                raise self._stopped(reason)
        read, batch = next(self._batches)
        assert isinstance(read, StepRead)
        return read, batch

    def _step(self) -> None:
        trainee, config, step = self.trainee, self.trainee.config, self.state.step
        factor = rate_factor(step, self.state.total_steps, config)
        trainee.optimizer.set_rates(factor)
        began = time.monotonic()
        waited = self._batches.seconds_waited
        read, batch = self._next()
        waited = self._batches.seconds_waited - waited
        batch = batch.to(trainee.device)
        trainee.optimizer.zero_grad()
        loss, measures_MKN = trainee.loss(trainee.hidden(batch), batch, self.state.previous_alpha)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), config.max_grad_norm)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            names = ", ".join(f"shard {r.shard_id} sample {r.index}" for r in read.refs[:8])
            raise DivergedError(
                f"loss {loss.item()} and gradient norm {norm.item()} at step {step + 1}"
                f" ({names}{', ...' if len(read.refs) > 8 else ''}); nothing was updated."
                " The checkpoint before it is kept; train again with a lower --learning-rate,"
                " in another --out"
            )
        trainee.optimizer.step()
        sums = MeasureSums(config.num_heads)
        sums.add(batch, measures_MKN)
        self.state = self.state.model_copy(
            update={
                "step": step + 1,
                "epoch": read.epoch,
                "batch_in_epoch": read.index + 1,
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
            "out_of_vocabulary": [1 - share for share in sums.mean("in_vocabulary")],
            "alpha": sums.mean("alpha"),
            "attainable_mass": sums.mean("mass")[0],
            "temperature_1": sums.sampling(greedy=False).model_dump(),
            "greedy": sums.sampling(greedy=True).model_dump(),
            "learning_rate": config.learning_rate * factor,
            "grad_norm": norm.item(),
        }
        speed = {
            "tokens": batch.num_tokens,
            "seconds": time.monotonic() - began,
            "data_wait": waited,
            "memory_mib": memory_mib(trainee.device),
        }
        self._report({"epoch": read.epoch, **figures, **speed})
        self.progress(step + 1, self.state.total_steps, {"loss": loss.item(), **speed})

    def _evaluate(self, num_batches: int) -> EvalMetrics:
        began, waited = time.monotonic(), self._batches.seconds_waited
        held_out = (batch for _, batch in islice(self._batches, num_batches))
        metrics = evaluate(self.trainee, held_out, self.eval_text)
        waited = self._batches.seconds_waited - waited
        seconds = time.monotonic() - began
        self._report({"eval": metrics.model_dump(), "seconds": seconds, "data_wait": waited})
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
        row = {"step": self.state.step, **row}
        self.folder.append_metrics(row)
        self.reports.add(row)

    def _save(self, best: bool) -> None:
        seconds = self._before.seconds + time.monotonic() - self._began
        data_wait = self._before.data_wait + self._batches.seconds_waited
        self.state = self.state.model_copy(update={"seconds": seconds, "data_wait": data_wait})
        keep = self.trainee.config.keep_checkpoints
        save_checkpoint(self.folder.path, self.trainee, self.state, best=best, keep=keep)
