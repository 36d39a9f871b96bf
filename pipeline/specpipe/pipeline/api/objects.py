"""Answers of the API, in the shapes of OpenAI's files and fine-tuning objects."""

from typing import Any

from specpipe.pipeline.api.database import StoredEvent, StoredFile, StoredJob

_EVENT = "ftevent-"


def file_object(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def job_object(job: StoredJob) -> dict[str, Any]:
    result = job.result or {}
    parameters = job.body["method"].get("spec_draft", {}).get("hyperparameters", {})
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "status": job.status,
        "model": job.body["model"],
        "fine_tuned_model": _name(job) if job.status == "succeeded" else None,
        "organization_id": "local",
        "training_file": job.body["training_file"],
        "validation_file": None,
        "result_files": result.get("files", []),
        "method": job.body["method"],
        "hyperparameters": parameters,
        "seed": job.body.get("seed", 0),
        "suffix": job.body.get("suffix"),
        "user_provided_suffix": job.body.get("suffix"),
        "trained_tokens": result.get("trained_tokens"),
        "estimated_finish": None,
        "error": job.error,
        "integrations": [],
        "metadata": None,
    }


def event_object(event: StoredEvent) -> dict[str, Any]:
    return {
        "id": f"{_EVENT}{event.number}",
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data,
    }


def event_number(event_id: str) -> int:
    """0, below every event's, for what is no event's id."""
    digits = event_id.removeprefix(_EVENT)
    return int(digits) if digits.isdecimal() and len(digits) < 19 else 0


def checkpoint_objects(job: StoredJob) -> list[dict[str, Any]]:
    """The artifact of a job that has succeeded; before that there is none to download."""
    if job.result is None:
        return []
    return [
        {
            "id": job.id.replace("ftjob", "ftckpt"),
            "object": "fine_tuning.job.checkpoint",
            "created_at": job.finished_at,
            "fine_tuned_model_checkpoint": _name(job),
            "fine_tuning_job_id": job.id,
            "step_number": job.result["step"],
            "metrics": job.result["metrics"],
            "result_files": job.result["artifact"],
        }
    ]


def page(objects: list[dict[str, Any]], limit: int, after: str | None = None) -> dict[str, Any]:
    """Objects that come after the one with the id `after`, at most `limit`."""
    if after is not None:
        ids = [one["id"] for one in objects]
        objects = objects[ids.index(after) + 1 :] if after in ids else []
    return {
        "object": "list",
        "data": objects[:limit],
        "first_id": objects[0]["id"] if objects else None,
        "last_id": objects[:limit][-1]["id"] if objects else None,
        "has_more": len(objects) > limit,
    }


def error_object(message: str, *, param: str | None = None, code: str | None = None) -> Any:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return {"error": error}


def _name(job: StoredJob) -> str:
    return ":".join(["specpipe", job.body.get("suffix") or "drafter", job.id])
