"""Events of a running job, as clients read them."""

from specpipe.pipeline.api.database import JobDatabase, NewEvent
from specpipe.pipeline.job.folder import JobFolder
from specpipe.pipeline.job.status import running_stage
from specpipe.schemas.errors import SpecpipeError
from specpipe.schemas.records.job import JobMetrics, job_metrics
from specpipe.stages.runs.metric_rows import NewMetricRows


class JobEvents:
    """The progress of a running job, as events that clients read."""

    def __init__(self, store: JobDatabase, job_id: str, folder: JobFolder) -> None:
        self._store, self._job_id, self._folder = store, job_id, folder
        self._rows = NewMetricRows(folder.train)
        # A job that goes on does the steps after its last checkpoint again.
        self._reported = {
            (event.data["split"], event.data["step"])
            for event in store.events(job_id)
            if event.type == "metrics"
        }
        self._stage: str | None = None

    def look(self) -> None:
        """Turn what is new into events."""
        try:
            stage = running_stage(self._folder)
        except SpecpipeError:
            return  # it has not begun
        if stage is not None and stage != self._stage:
            self._stage = stage
            self._store.add_event(self._job_id, f"Stage {stage} runs")
        new = [
            line
            for line in job_metrics(self._rows.look())
            if (line.split, line.step) not in self._reported
        ]
        self._reported |= {(line.split, line.step) for line in new}
        self._store.add_events(self._job_id, list(map(_event, new)))


def _event(line: JobMetrics) -> NewEvent:
    loss = line.metrics.get("draft_loss")
    message = f"Step {line.step}, {line.split}" + ("" if loss is None else f": loss {loss:.4f}")
    return NewEvent(message, line.model_dump())
