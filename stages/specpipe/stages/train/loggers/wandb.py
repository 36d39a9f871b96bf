"""Weights & Biases; offline with WANDB_MODE=offline, then its files wait in RUN/wandb."""

from collections.abc import Mapping

import wandb

from specpipe.stages.train.loggers.logger import Session


class WeightsAndBiases:
    """One row per report, over the field `step`: a step and its evaluation are two rows."""

    def __init__(self, session: Session) -> None:
        # The command line, the code and the environment stay out: they may hold a secret.
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            silent=True,
        )
        self._run = wandb.init(
            project=session.project,
            name=session.name,
            id=session.run_id,
            resume=None if session.run_id is None else "allow",
            dir=session.folder,
            config=dict(session.settings),
            settings=settings,
        )
        self.run_id = self._run.id
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
