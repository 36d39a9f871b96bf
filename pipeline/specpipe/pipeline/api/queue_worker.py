"""The queue's worker: one job at a time, each by `specpipe run`, followed into events."""

import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from specpipe.pipeline.api.database import CANCELLED, JobDatabase, StoredJob
from specpipe.pipeline.api.job_events import JobEvents
from specpipe.pipeline.job.folder import JobFolder
from specpipe.pipeline.job.status import job_report
from specpipe.pipeline.terminal.console import note
from specpipe.schemas.errors import SpecpipeError, UnfinishedError
from specpipe.schemas.records.job import METRICS_FILE, REPORT_FILE, JobReport
from specpipe.stages.process.parent import with_this_parent

_LOOK_SECONDS = 0.5
_RETRY_SECONDS = 5.0
MOST_STOPS = 3
"""Ends of a job that neither it nor its client asked for (memory, a kill) until it has failed."""
RESULTS = "fine-tune-results"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class QueueWorker:
    """Takes jobs from the store until it is closed; a job that it leaves goes on with the next."""

    def __init__(self, store: JobDatabase, config: Path | None) -> None:
        """`config`: further settings of every job, as `specpipe run --config` takes them."""
        self._store, self._config = store, config
        self._stops: Counter[str] = Counter()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="specpipe-jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop the job that runs where it can go on, and take no more."""
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                self._next()
            except sqlite3.Error as error:
                # A full disk, most likely: what is in the queue waits until there is room.
                note(f"the queue cannot be written ({error}); trying again")
                self._closing.wait(_RETRY_SECONDS)

    def _next(self) -> None:
        job = self._store.next_job()
        if job is None:
            self._closing.wait(_LOOK_SECONDS)
        elif job.cancel:
            self._end(job, "cancelled", CANCELLED)
        elif self._store.start_job(job.id):
            try:
                self._run(job)
            except sqlite3.Error:
                raise
            except Exception as error:  # one job's trouble must not end the queue
                self._fail(job, f"{type(error).__name__}: {error}", "internal_error")

    def _run(self, job: StoredJob) -> None:
        folder = self._store.jobs / job.id
        folder.mkdir(exist_ok=True)
        body = folder / "request.json"
        body.write_text(json.dumps(self._with_path(job.body)), encoding="utf-8")
        self._store.add_event(job.id, "The job goes on" if job.started_at else "The job starts")
        out = folder / "out"
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "specpipe", "run", str(body), "--out", str(out)]
                + ([] if self._config is None else ["--config", str(self._config)]),
                stdout=log,
                stderr=log,
                env=with_this_parent(),
            )
        try:
            self._follow(job.id, process, JobFolder(out))
        finally:
            # Nobody would follow it any more, and the next job must not run beside it.
            process.terminate()
            process.wait()
        self._after(job, JobFolder(out), process.returncode)

    def _follow(self, job_id: str, process: subprocess.Popen[bytes], folder: JobFolder) -> None:
        """Until it ends, by itself or because somebody asked for that."""
        events = JobEvents(self._store, job_id, folder)
        is_stopped = False
        while process.poll() is None:
            time.sleep(_LOOK_SECONDS)
            events.look()
            stored = self._store.job(job_id)
            if not is_stopped and (self._closing.is_set() or (stored and stored.cancel)):
                process.terminate()
                is_stopped = True
        events.look()

    def _with_path(self, body: dict[str, Any]) -> dict[str, Any]:
        file = self._store.file(body["training_file"])
        return body if file is None else body | {"training_file": file.path}

    def _after(self, job: StoredJob, folder: JobFolder, exit_code: int) -> None:
        stored = self._store.job(job.id)
        if exit_code == 0:
            self._succeed(job, job_report(folder))
        elif stored is not None and stored.cancel:
            self._end(job, "cancelled", CANCELLED)
        elif not self._closing.is_set():
            message, kind = _why(folder, exit_code)
            message = self._without_places(message, job.body)
            self._stops[job.id] += 1
            # Somebody else ended it: who stops the server may well tell all of its processes.
            is_stopped = exit_code < 0 or exit_code == UnfinishedError.exit_code
            if is_stopped and self._stops[job.id] < MOST_STOPS:
                self._store.add_event(job.id, f"The job was stopped: {message}", level="warn")
                self._closing.wait(_LOOK_SECONDS)
            else:
                self._fail(job, message, kind)

    def _without_places(self, message: str, body: dict[str, Any]) -> str:
        """A message to a client: it names no path of this machine, and does not tell a folder
        that is there from one that is not."""
        model = body["model"]
        is_path = _HUB_ID.fullmatch(model) is None
        if is_path and message.startswith(f"target {model}"):
            return f"model: this server cannot load {model!r}; the job's log.txt there says why"
        if (file := self._store.file(body["training_file"])) is not None:
            message = message.replace(file.path, file.name)
        return message.replace(f"{self._store.folder}/", "")

    def _succeed(self, job: StoredJob, report: JobReport) -> None:
        paths = [Path(path) for path in report.artifact]
        paths += [Path(report.out) / name for name in (METRICS_FILE, REPORT_FILE)]
        files = [self._store.add_file(p.name, RESULTS, p) for p in paths if p.exists()]
        result = {
            "files": files,
            "artifact": files[: len(report.artifact)],
            "metrics": report.metrics,
            "step": (report.stages["train"].result or {}).get("best_step"),
            "trained_tokens": (report.stages["train"].result or {}).get("num_tokens"),
        }
        self._store.update_job(job.id, result=result)
        self._end(job, "succeeded", "The job is done; its files are ready")

    def _fail(self, job: StoredJob, message: str, code: str) -> None:
        self._store.update_job(job.id, error={"message": message, "code": code, "param": None})
        self._end(job, "failed", message, level="error")

    def _end(self, job: StoredJob, status: str, message: str, level: str = "info") -> None:
        self._store.add_event(job.id, message, level=level)
        self._store.update_job(job.id, status=status, finished_at=_now())


def _why(folder: JobFolder, exit_code: int) -> tuple[str, str]:
    try:
        error = job_report(folder).error
    except SpecpipeError as problem:
        return str(problem), type(problem).__name__
    if error is None:
        return f"specpipe run ended with {exit_code}; its log.txt has more", "internal_error"
    return error.message, error.kind or "internal_error"


def _now() -> int:
    return int(time.time())
