"""MLflow: the store that MLFLOW_TRACKING_URI names, or MLflow's own default."""

import json
import time
from collections.abc import Mapping

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from specpipe.stages.train.loggers.logger import Session


class Mlflow:
    """A run of the experiment that is called as the project."""

    def __init__(self, session: Session) -> None:
        # The client and not the fluent interface, which records the command line by itself.
        self._client = MlflowClient()
        if session.run_id is None:
            self.run_id = self._new_run(session)
        else:
            self.run_id = session.run_id
            self._client.update_run(self.run_id, status="RUNNING")

    def _new_run(self, session: Session) -> str:
        experiment = self._client.get_experiment_by_name(session.project)
        experiment_id = (
            self._client.create_experiment(session.project)
            if experiment is None
            else experiment.experiment_id
        )
        run_id: str = self._client.create_run(experiment_id, run_name=session.name).info.run_id
        params = [
            Param(name, value if isinstance(value, str) else json.dumps(value))
            for name, value in session.settings.items()
        ]
        self._client.log_batch(run_id, params=params)
        return run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        # An unfinished run may be continued; MLflow has no word for it but this one.
        self._client.set_terminated(self.run_id, status="FINISHED" if finished else "KILLED")
