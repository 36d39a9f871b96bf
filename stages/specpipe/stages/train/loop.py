"""The training loop: steps, metrics, evaluations, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from specpipe.schemas.errors import DivergedError, SpecpipeError, StoreError, UnfinishedError
from specpipe.schemas.records.checkpoint import TrainState
from specpipe.schemas.records.dump import TextOrigin
from specpipe.schemas.records.metrics import EvalMetrics, scalars
from specpipe.stages.process.stop import StopQuestion
from specpipe.stages.runs.folder import RunFolder
from specpipe.stages.runs.pointers import latest_checkpoint
from specpipe.stages.samples.batch import Batch, DrafterSample, make_batch
from specpipe.stages.samples.read_ahead import ReadAhead
from specpipe.stages.samples.reader import SampleReader, SampleRef
from specpipe.stages.storage.shard.buffer_pool import BufferPool
from specpipe.stages.train.checkpoint_writer import save_checkpoint
from specpipe.stages.train.data.order import (
    PlannedRead,
    Step,
    eval_every,
    evaluates_after,
    evaluation_reads,
    planned_reads,
    planned_steps,
)
from specpipe.stages.train.data.starts import chosen_starts
from specpipe.stages.train.early_stop import stops_early
from specpipe.stages.train.evaluate import evaluate, selection_tau
from specpipe.stages.train.loggers.reports import Reports
from specpipe.stages.train.memory import enough_memory, memory_mib
from specpipe.stages.train.optim.objective import Measured
from specpipe.stages.train.optim.schedule import rate_factor
from specpipe.stages.train.ranks.ranks import lost
from specpipe.stages.train.step import StepFigures, compute_gradients
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
    should_stop: StopQuestion
    """Asked after every step, between the batches of an evaluation, and while data is late."""
    idle: Batch | None = None
    """Of a sharded run: what a rank walks that has a pack less than another one in a step."""

    _batches: ReadAhead[PlannedRead, Batch] = field(init=False)
    _memory: BufferPool = field(init=False, default_factory=lambda: BufferPool(0))
    """Of batches that are done with, for the next ones."""
    _steps: Iterator[Step] = field(init=False)
    _num_eval_batches: int = field(init=False)
    """Of one evaluation, on all ranks."""
    _before: TrainState = field(init=False)
    _began: float = field(init=False)
    _progress: Progress = field(init=False)
    _report_error: Exception | None = field(init=False, default=None)

    def run(self, progress: Progress) -> TrainState:
        """Train to the end; raises UnfinishedError after saving when asked to stop early."""
        self._progress = progress
        config, ranks = self.trainee.config, self.trainee.ranks
        share = slice(ranks.rank, None, ranks.size)
        pack_tokens = config.pack_tokens or config.batch_tokens
        evaluation = evaluation_reads(self.eval_reader, self.held_out, pack_tokens, ranks.size)
        self._num_eval_batches = len(evaluation)
        reads = planned_reads(
            config, self.state, self.reader, self.training, evaluation[share], share
        )
        self._steps = planned_steps(config, self.state, self.training)
        self._before, self._began = self.state, time.monotonic()
        # A sharded model exchanges its weights and gradients inside its passes.
        with lost(), ReadAhead(reads, self._batch, config.prefetch_mib) as self._batches:
            self._run()
        return self.state

    def _batch(self, read: PlannedRead, samples: list[DrafterSample]) -> Batch:
        config = self.trainee.config
        choose = chosen_starts(config, read)
        batch = make_batch(samples, config.num_heads, self._memory, choose)
        return batch.pinned() if self.trainee.device.type == "cuda" else batch

    def _run(self) -> None:
        if self.state.eval_due and self.state.step > 0:
            self._finish_step()
        elif self.state.eval_due:
            metrics = self._evaluate()
            self.state = self.state.model_copy(update={"untrained": metrics})
        while not self._is_over():
            self._step()
            self._finish_step()

    def _is_over(self) -> bool:
        is_last = self.state.step == self.state.total_steps
        return is_last or stops_early(self.state, self.trainee.config)

    def _finish_step(self) -> None:
        """After the update: the evaluation and the checkpoint, where it is their turn."""
        step, total, config = self.state.step, self.state.total_steps, self.trainee.config
        checkpoint_every = config.checkpoint_every or min(
            eval_every(total, config), MOST_STEPS_AT_RISK
        )
        best = self.state.eval_due and self._keep_best(self._evaluate())
        is_over = self._is_over()
        with self.trainee.ranks.together() as agreed:
            self._check_reported()
            agreed.reason = None if is_over else self.should_stop()
        if best or agreed.reason or step % checkpoint_every == 0 or is_over:
            self._save(best)
        if agreed.reason:
            self._stop(agreed.reason)

    def _leave(self, reason: str, at_first: str) -> NoReturn:
        """Stop where no checkpoint is due; `at_first` says what came before the first step."""
        if self.state.step == 0:
            self._end(
                UnfinishedError(
                    f"{reason}: stopped before the first step, {at_first}; run the same command"
                    " again"
                )
            )
        self._save(best=False)
        self._stop(reason)

    def _stop(self, reason: str) -> NoReturn:
        step, total = self.state.step, self.state.total_steps
        self._end(
            UnfinishedError(
                f"{reason}: stopped at step {step} of {total}, checkpoint saved in"
                f" {self.folder.path}; run the same command again to continue"
            )
        )

    def _end(self, error: SpecpipeError) -> NoReturn:
        """Raise what every rank has come to; one of them says it."""
        with self.trainee.ranks.together():
            raise error
        raise AssertionError("the ranks have agreed on no error")

    def _read(self, num_packs: int) -> list[Batch]:
        """This rank's packs of the next step; while any rank's are late, all stop if asked to."""
        packs: list[Batch] = []
        with self.trainee.ranks.together() as agreed:
            while len(packs) < num_packs and agreed.reason is None:
                if self._batches.is_ready(STOP_PATIENCE):
                    packs.append(next(self._batches)[1])
                else:
                    agreed.reason = self.should_stop()
        if agreed.reason is None:
            return packs
        self._leave(agreed.reason, f"which waited for data from {self.reader.dump.folder.url}")

    def _step(self) -> None:
        trainee, config, number = self.trainee, self.trainee.config, self.state.step
        began, waited = time.monotonic(), self._batches.seconds_waited
        step = next(self._steps)
        packs = self._read(len(step.packs[trainee.ranks.rank :: trainee.ranks.size]))
        waited = self._batches.seconds_waited - waited
        factor = rate_factor(number, self.state.total_steps, config)
        trainee.optimizer.set_rates(factor)
        before = Measured(self.state.previous_alpha, self.state.survival)
        with enough_memory("in a step"):
            figures = compute_gradients(trainee, packs, len(step.packs), before, self.idle)
            self._check_finite(step, figures)
            trainee.optimizer.step()
        after = before.after(figures.alpha, figures.sums.survival)
        first = self.state.draft_loss_first
        self.state = self.state.model_copy(
            update={
                "step": number + 1,
                "epoch": step.epoch,
                "batch_in_epoch": step.index + 1,
                "eval_due": evaluates_after(number + 1, self.state.total_steps, config),
                "previous_alpha": after.alpha,
                "survival": after.survival,
                "num_tokens": self.state.num_tokens + step.num_tokens,
                "draft_loss_first": figures.loss if first is None else first,
                "draft_loss_last": figures.loss,
            }
        )
        speed = {
            "tokens": step.num_tokens,
            "seconds": time.monotonic() - began,
            "data_wait": waited,
            "memory_mib": memory_mib(trainee.device),
        }
        rate = config.learning_rate * factor
        self._report({"epoch": step.epoch, **figures.metrics(), "learning_rate": rate, **speed})
        self._show({"loss": figures.loss, **speed})

    def _check_finite(self, step: Step, figures: StepFigures) -> None:
        if math.isfinite(figures.loss) and math.isfinite(figures.grad_norm):
            return
        losses = zip(step.packs, figures.losses_P, strict=True)
        bad = [pack for pack, loss in losses if not math.isfinite(loss)] or step.packs
        refs = [ref for pack in bad for ref in pack]
        names = ", ".join(self.reader.place(ref) for ref in refs[:8])
        self._save(best=False)
        self._diverged(
            f"loss {figures.loss} and gradient norm {figures.grad_norm} at step"
            f" {self.state.step + 1} ({names}{', ...' if len(refs) > 8 else ''}); nothing was"
            " updated"
        )

    def _diverged(self, what: str) -> NoReturn:
        latest = latest_checkpoint(self.folder.path)
        kept = f"What was trained before is in {latest}" if latest else "There is no checkpoint"
        lower = "--learning-rate" + (" or --state-loss" if self.trainee.state_loss else "")
        self._end(
            DivergedError(f"{what}. {kept}; train again with a lower {lower}, in another --out")
        )

    def _evaluate(self) -> EvalMetrics:
        began, waited = time.monotonic(), self._batches.seconds_waited
        metrics = evaluate(
            self.trainee,
            self._held_out(),
            self._num_eval_batches,
            self.eval_text,
            self._stops_evaluation,
        )
        if isinstance(metrics, str):
            self._leave(metrics, "in the evaluation")
        values = scalars({"eval": metrics.model_dump()})
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            names = ", ".join(bad[:4])
            self._diverged(f"the evaluation at step {self.state.step} is not finite ({names})")
        waited = self._batches.seconds_waited - waited
        seconds = time.monotonic() - began
        self._report({"eval": metrics.model_dump(), "seconds": seconds, "data_wait": waited})
        tau = selection_tau(metrics, self.eval_text)
        self._show({"tau": tau})
        self.state = self.state.model_copy(update={"eval_due": False})
        return metrics

    def _held_out(self) -> Iterator[Batch]:
        """This rank's batches of an evaluation; they end where one is late and the run stops."""
        ranks = self.trainee.ranks
        for _ in range(ranks.rank, self._num_eval_batches, ranks.size):
            while not self._batches.is_ready(STOP_PATIENCE):
                if self._stops_evaluation() is not None:
                    return
            yield next(self._batches)[1]

    def _stops_evaluation(self) -> str | None:
        """The reason to stop within an evaluation.

        One that the run goes on with is not stopped by the time limit: a limit shorter than an
        evaluation would let no run get further.
        """
        self._check_reported()
        is_first = self.state.step == self._before.step
        return self.should_stop.of_signal() if is_first else self.should_stop()

    def _keep_best(self, metrics: EvalMetrics) -> bool:
        best = self.state.best
        if best is not None and selection_tau(metrics, self.eval_text) <= selection_tau(
            best, self.eval_text
        ):
            return False
        self.state = self.state.model_copy(update={"best": metrics, "best_step": self.state.step})
        return True

    def _report(self, row: dict[str, Any]) -> None:
        if not self.trainee.ranks.is_first:
            return
        row = {"step": self.state.step, **row}
        try:
            self.folder.append_metrics(row)
        except StoreError as error:
            # Deferred to the next collective: raising on one rank alone would deadlock the others.
            self._report_error = self._report_error or error
        self.reports.add(row)

    def _check_reported(self) -> None:
        """Raise what went wrong with the metrics; to be called where the ranks agree."""
        if self._report_error is not None:
            raise self._report_error

    def _show(self, figures: dict[str, float]) -> None:
        if self.trainee.ranks.is_first:
            self._progress(self.state.step, self.state.total_steps, figures)

    def _save(self, best: bool) -> None:
        seconds = self._before.seconds + time.monotonic() - self._began
        data_wait = self._before.data_wait + self._batches.seconds_waited
        self.state = self.state.model_copy(update={"seconds": seconds, "data_wait": data_wait})
        keep = self.trainee.config.keep_checkpoints
        save_checkpoint(self.folder.path, self.trainee, self.state, best=best, keep=keep)
