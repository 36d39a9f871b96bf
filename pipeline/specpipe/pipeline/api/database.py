"""Files, jobs and events of the local server, in one SQLite database beside the files."""

import json
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.schemas.errors import IntegrityError, StoreError

TERMINAL = ("succeeded", "failed", "cancelled")
CANCELLED = "The job was cancelled"

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, purpose TEXT NOT NULL, path TEXT NOT NULL,
  bytes INTEGER NOT NULL, created_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, body TEXT NOT NULL, status TEXT NOT NULL, created_at INTEGER NOT NULL,
  started_at INTEGER, finished_at INTEGER, error TEXT, result TEXT,
  cancel INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL REFERENCES jobs(id),
  created_at INTEGER NOT NULL, level TEXT NOT NULL, type TEXT NOT NULL, message TEXT NOT NULL,
  data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_job ON events(job, number);
"""


_SUFFIXES = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$")

_NO_END = 2**63 - 1
"""Above every number in SQLite."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    name: str
    """As it was uploaded; never a path here."""
    purpose: str
    path: str
    bytes: int
    created_at: int


@dataclass(frozen=True, slots=True)
class StoredJob:
    id: str
    body: dict[str, Any]
    status: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    error: dict[str, Any] | None
    result: dict[str, Any] | None
    cancel: bool
    """Somebody has asked for its end."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    number: int
    job: str
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NewEvent:
    message: str
    data: dict[str, Any] | None = None
    """Metrics; None for a message alone."""
    level: str = "info"


class JobDatabase:
    """Any number of threads may use it: each call has its own connection.

    Old and new are told apart by rowid: a clock may be set back.
    """

    def __init__(self, folder: Path) -> None:
        """Raises StoreError where the folder cannot be written to, IntegrityError where its
        database is none or damaged."""
        self.folder = folder.resolve()
        self.files = self.folder / "files"
        self.jobs = self.folder / "jobs"
        self._database = self.folder / "jobs.sqlite"
        try:
            for path in (self.files, self.jobs):
                path.mkdir(parents=True, exist_ok=True)
            with self._connected() as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.executescript(_TABLES)
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreError(f"cannot write to {self.folder}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise IntegrityError(
                f"{self._database} holds no queue, or a damaged one ({error}); give another --data,"
                " or put the file back from a copy"
            ) from None

    def new_file_path(self, name: str = "") -> tuple[str, Path]:
        """A new file's id, and where its bytes go: under the id, and the suffixes of `name`, by
        which Parquet and compressed files are known."""
        file_id = _new_id("file")
        suffixes = _SUFFIXES.search(name)
        return file_id, self.files / (file_id + (suffixes.group().lower() if suffixes else ""))

    def add_file(self, name: str, purpose: str, path: Path, file_id: str | None = None) -> str:
        """The file's id; the one that it has, if it was added before."""
        with self._connected() as database:
            known = database.execute(
                "SELECT id FROM files WHERE path = ?", (self._stored(path),)
            ).fetchone()
            if known is not None:
                return str(known["id"])
            file_id = file_id or _new_id("file")
            database.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
                (file_id, name, purpose, self._stored(path), path.stat().st_size, _now()),
            )
        return file_id

    def file(self, file_id: str) -> StoredFile | None:
        rows = self._rows("SELECT * FROM files WHERE id = ?", (file_id,))
        return self._file(rows[0]) if rows else None

    def list_files(self) -> list[StoredFile]:
        """The newest first."""
        rows = self._rows("SELECT * FROM files ORDER BY rowid DESC")
        return [self._file(row) for row in rows]

    def delete_file(self, file: StoredFile) -> str | None:
        """Forget a file; its bytes go where they were uploaded.

        Where a job still needs it, nothing is done, and the job's id is returned.
        """
        with self._changing() as database:
            for job in database.execute("SELECT id, body, status FROM jobs"):
                is_of_file = json.loads(job["body"])["training_file"] == file.id
                if is_of_file and job["status"] not in TERMINAL:
                    return str(job["id"])
            database.execute("DELETE FROM files WHERE id = ?", (file.id,))
        if Path(file.path).parent == self.files:
            Path(file.path).unlink(missing_ok=True)
        return None

    def add_job(self, body: dict[str, Any]) -> StoredJob | None:
        """The job in the queue; None where its training file is gone."""
        job_id = _new_id("ftjob")
        with self._changing() as database:
            file_id = (body["training_file"],)
            if not database.execute("SELECT 1 FROM files WHERE id = ?", file_id).fetchone():
                return None
            database.execute(
                "INSERT INTO jobs (id, body, status, created_at) VALUES (?, ?, 'queued', ?)",
                (job_id, json.dumps(body), _now()),
            )
        return self.job(job_id)

    def job(self, job_id: str) -> StoredJob | None:
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", (job_id,))
        return _job(rows[0]) if rows else None

    def list_jobs(self) -> list[StoredJob]:
        """The newest first."""
        return [_job(row) for row in self._rows("SELECT * FROM jobs ORDER BY rowid DESC")]

    def next_job(self) -> StoredJob | None:
        """The one to run: the oldest that is not over. One that runs belongs to a server that
        was killed, and goes on first."""
        rows = self._rows(
            "SELECT * FROM jobs WHERE status IN ('running', 'queued')"
            " ORDER BY status = 'queued', rowid LIMIT 1"
        )
        return _job(rows[0]) if rows else None

    def start_job(self, job_id: str) -> bool:
        """False where it was cancelled meanwhile."""
        with self._connected() as database:
            changed = database.execute(
                "UPDATE jobs SET status = 'running', started_at = COALESCE(started_at, ?)"
                " WHERE id = ? AND status IN ('running', 'queued')",
                (_now(), job_id),
            )
            return changed.rowcount == 1

    def cancel_job(self, job_id: str) -> bool:
        """A job that waits is over at once, one that runs when it has stopped; False where it is
        over already."""
        with self._connected() as database:
            waited = database.execute(
                "UPDATE jobs SET cancel = 1, status = 'cancelled', finished_at = ?"
                " WHERE id = ? AND status = 'queued'",
                (_now(), job_id),
            )
            if waited.rowcount == 1:
                _insert_events(database, job_id, [NewEvent(CANCELLED)])
                return True
            runs = database.execute(
                "UPDATE jobs SET cancel = 1 WHERE id = ? AND status = 'running'", (job_id,)
            )
            return runs.rowcount == 1

    def update_job(self, job_id: str, **changes: Any) -> None:
        """Change columns of a job; a mapping is stored as JSON."""
        columns = ", ".join(f"{name} = ?" for name in changes)
        values = [json.dumps(v) if isinstance(v, dict) else v for v in changes.values()]
        with self._connected() as database:
            # The names are this module's callers', never a client's.
            database.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (*values, job_id))

    def add_event(self, job_id: str, message: str, level: str = "info") -> None:
        self.add_events(job_id, [NewEvent(message, level=level)])

    def add_events(self, job_id: str, events: Sequence[NewEvent]) -> None:
        """All of them or none."""
        if events:
            with self._connected() as database:
                _insert_events(database, job_id, events)

    def events(
        self, job_id: str, *, before: int | None = None, most: int | None = None
    ) -> list[StoredEvent]:
        """The newest first; those with a number below `before`, at most so many."""
        rows = self._rows(
            "SELECT * FROM events WHERE job = ? AND number < ? ORDER BY number DESC LIMIT ?",
            (job_id, _NO_END if before is None else before, -1 if most is None else most),
        )
        return [StoredEvent(**{**row, "data": json.loads(row["data"])}) for row in rows]

    def _stored(self, path: Path) -> str:
        """Below the folder: it may move."""
        return str(path.relative_to(self.folder))

    def _file(self, row: dict[str, Any]) -> StoredFile:
        return StoredFile(**{**row, "path": str(self.folder / row["path"])})

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        with self._connected() as database:
            return [dict(row) for row in database.execute(query, values)]

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A connection whose reads and writes are one transaction: nothing changes in between."""
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            yield database

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self._database, timeout=30)
        database.row_factory = sqlite3.Row
        try:
            with database:
                yield database
        finally:
            database.close()


def _insert_events(database: sqlite3.Connection, job_id: str, events: Sequence[NewEvent]) -> None:
    rows = [
        (
            job_id,
            _now(),
            event.level,
            "message" if event.data is None else "metrics",
            event.message,
            json.dumps(event.data or {}),
        )
        for event in events
    ]
    database.executemany(
        "INSERT INTO events (job, created_at, level, type, message, data)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        rows,
    )


def _job(row: dict[str, Any]) -> StoredJob:
    texts = {name: json.loads(row[name]) if row[name] else None for name in ("error", "result")}
    return StoredJob(
        **{**row, **texts, "body": json.loads(row["body"]), "cancel": bool(row["cancel"])}
    )


def _new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def _now() -> int:
    return int(time.time())
