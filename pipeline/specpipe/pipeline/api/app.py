"""The HTTP interface: files and fine-tuning jobs, as OpenAI's clients call them."""

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

from specpipe.pipeline.api.database import JobDatabase, StoredFile, StoredJob
from specpipe.pipeline.api.guard import Guard
from specpipe.pipeline.api.objects import (
    checkpoint_objects,
    error_object,
    event_number,
    event_object,
    file_object,
    job_object,
    page,
)
from specpipe.pipeline.api.queue_worker import RESULTS, QueueWorker
from specpipe.pipeline.terminal.console import note
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.job import parse_job, problems_in_a_line

PURPOSES = ("fine-tune",)
MOST_FILES = 10_000
Limit = Annotated[int, Query(ge=1, le=100)]
FilesLimit = Annotated[int, Query(ge=1, le=MOST_FILES)]
_STEP = {"desc": 1, "asc": -1}
"""Through a list that begins with the newest."""
Answer = dict[str, Any]


def make_app(store: JobDatabase, token: str, most_bytes: int, config: Path | None) -> FastAPI:
    """The server: `token` opens it, `config` holds further settings of every job."""
    worker = QueueWorker(store, config)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.close()

    app = FastAPI(title="specpipe", lifespan=lifespan, docs_url=None, redoc_url=None,
                  openapi_url=None)  # fmt: skip
    app.add_middleware(Guard, token=token, most_bytes=most_bytes)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(sqlite3.Error, _database_error)
    _add_files(app, store)
    _add_jobs(app, store)

    @app.get("/health")
    def health() -> Answer:
        return {"status": "ok"}

    return app


def _add_files(app: FastAPI, store: JobDatabase) -> None:
    @app.post("/v1/files")
    def upload(file: UploadFile, purpose: Annotated[str, Form()]) -> Answer:
        if purpose not in PURPOSES:
            raise HTTPException(400, f"purpose: must be one of {', '.join(PURPOSES)}")
        name = Path(file.filename or "file").name
        file_id, path = store.new_file_path(name)
        try:
            with path.open("wb") as target:
                shutil.copyfileobj(file.file, target)
            store.add_file(name, purpose, path, file_id)
        except (OSError, sqlite3.Error) as error:
            path.unlink(missing_ok=True)
            raise HTTPException(507, _not_stored(error)) from None
        return file_object(_file(store, file_id))

    @app.get("/v1/files")
    def files(
        purpose: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        limit: FilesLimit = MOST_FILES,
        after: str | None = None,
    ) -> Answer:
        files = [file for file in store.list_files() if purpose in (None, file.purpose)]
        return page([file_object(file) for file in files[:: _STEP[order]]], limit, after)

    @app.get("/v1/files/{file_id}")
    def file(file_id: str) -> Answer:
        return file_object(_file(store, file_id))

    @app.get("/v1/files/{file_id}/content")
    def content(file_id: str) -> FileResponse:
        file = _file(store, file_id)
        if not Path(file.path).is_file():
            raise HTTPException(404, f"{file.name} is gone from the server's disk")
        return FileResponse(file.path, filename=file.name)

    @app.delete("/v1/files/{file_id}")
    def delete(file_id: str) -> Answer:
        file = _file(store, file_id)
        if file.purpose == RESULTS:
            raise HTTPException(400, "a result of a job stays with the job")
        if job_id := store.delete_file(file):
            raise HTTPException(409, f"{job_id} still needs this file; cancel it first")
        return {"id": file_id, "object": "file", "deleted": True}


def _add_jobs(app: FastAPI, store: JobDatabase) -> None:
    @app.post("/v1/fine_tuning/jobs")
    def create(body: Annotated[Any, Body()]) -> Answer:
        try:
            job = parse_job(body)
        except ConfigError as error:
            raise HTTPException(400, str(error)) from None
        # Paths and URLs are for whoever has a shell here; a client names what it has uploaded.
        file = store.file(job.training_file)
        is_upload = file is not None and file.purpose in PURPOSES
        stored = is_upload and store.add_job(job.model_dump(mode="json", exclude_none=True))
        if not stored:
            raise HTTPException(400, f"training_file: there is no file {job.training_file!r}")
        store.add_event(stored.id, "The job is in the queue")
        return job_object(stored)

    @app.get("/v1/fine_tuning/jobs")
    def jobs(limit: Limit = 20, after: str | None = None) -> Answer:
        return page([job_object(job) for job in store.list_jobs()], limit, after)

    @app.get("/v1/fine_tuning/jobs/{job_id}")
    def retrieve(job_id: str) -> Answer:
        return job_object(_job(store, job_id))

    @app.post("/v1/fine_tuning/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> Answer:
        _job(store, job_id)
        was_going_on = store.cancel_job(job_id)
        job = _job(store, job_id)
        if not was_going_on:
            raise HTTPException(400, f"the job is over: it has {job.status}")
        return job_object(job)

    @app.get("/v1/fine_tuning/jobs/{job_id}/events")
    def events(job_id: str, limit: Limit = 20, after: str | None = None) -> Answer:
        _job(store, job_id)
        # There may be one for each step of a long training.
        before = None if after is None else event_number(after)
        events = store.events(job_id, before=before, most=limit + 1)
        return page([event_object(event) for event in events], limit)

    @app.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")
    def checkpoints(job_id: str, limit: Limit = 10, after: str | None = None) -> Answer:
        return page(checkpoint_objects(_job(store, job_id)), limit, after)


def _file(store: JobDatabase, file_id: str) -> StoredFile:
    if (found := store.file(file_id)) is None:
        raise HTTPException(404, f"there is no file {file_id!r}")
    return found


def _job(store: JobDatabase, job_id: str) -> StoredJob:
    if (found := store.job(job_id)) is None:
        raise HTTPException(404, f"there is no job {job_id!r}")
    return found


def _not_stored(error: OSError | sqlite3.Error) -> str:
    """What the client is told where an upload cannot be written; the log is told, too."""
    why = error.strerror if isinstance(error, OSError) else error
    note(f"an upload cannot be stored: {why}")
    return f"the file cannot be stored: {why}"


def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    # The parser of a form writes the file to the disk; it calls any failure a bad request.
    if error.status_code == 400 and isinstance(error.__cause__, OSError):
        return JSONResponse(error_object(_not_stored(error.__cause__)), status_code=507)
    param, colon, _ = error.detail.partition(":")
    named = param if colon and param.isidentifier() else None
    return JSONResponse(error_object(error.detail, param=named), status_code=error.status_code)


def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    message = problems_in_a_line([(e["loc"][1:], e["msg"]) for e in error.errors()])
    return JSONResponse(error_object(message), status_code=400)


def _database_error(_request: Request, error: Exception) -> JSONResponse:
    # Clients try again after a 503.
    answer = error_object(f"the server's database does not answer: {error}")
    return JSONResponse(answer, status_code=503)
