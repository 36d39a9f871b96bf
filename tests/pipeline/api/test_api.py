"""The hosted service's code against the local server: base_url is all that changes."""

import asyncio
import io
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from specpipe.schemas.settings.stages import ValidateConfig
from specpipe.stages.validate.run import run as validate
from tests.dump.conftest import rows
from tests.pipeline.api.conftest import TOKEN, Server
from tests.validate.serve.test_export_serve import SHARED, prompts_of_one_length
from tests.validate.small import SAMPLE_DATA

Start = Callable[..., Server]


def training_data(number: int = 40) -> io.BytesIO:
    file = io.BytesIO("".join(json.dumps(row) + "\n" for row in rows(number)).encode())
    file.name = "training.jsonl"
    return file


def request(model: Path, training_file: str, **hyperparameters: Any) -> dict[str, Any]:
    """The seed's example, at the size of a test."""
    return {
        "model": str(model),
        "training_file": training_file,
        "method": {
            "type": "spec-draft",
            "spec_draft": {
                "hyperparameters": {
                    "batch_size": 8,
                    "learning_rate": 0.0075,
                    "n_epochs": 1,
                    "warmup_ratio": 0.1,
                    "max_grad_norm": 1.0,
                    "context_length": 64,
                    "loss": {"type": "kl"},
                    "num_decoding_heads": 2,
                    "architecture": "eagle3_original",
                    **hyperparameters,
                },
            },
        },
        "seed": 2214,
        "suffix": "specdec-example",
    }


def wait(client: openai.OpenAI, job_id: str, *, until: Callable[[Any], bool]) -> Any:
    for _ in range(1200):
        job = client.fine_tuning.jobs.retrieve(job_id)
        if until(job):
            return job
        time.sleep(0.25)
    raise AssertionError(f"{job_id} is {job.status}")


def is_over(job: Any) -> bool:
    return job.status in ("succeeded", "failed", "cancelled")


def messages(client: openai.OpenAI, job_id: str) -> list[str]:
    """All events, the oldest first, a page at a time."""
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=7)][::-1]


def downloaded(client: openai.OpenAI, job_id: str) -> dict[str, bytes]:
    """The result files of a job that is done, by name."""
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(job_id)
    names = {}
    for file_id in checkpoint.model_dump()["result_files"]:
        file = client.files.retrieve(file_id)
        names[file.filename] = client.files.content(file_id).read()
        assert len(names[file.filename]) == file.bytes
    return names


@pytest.mark.slow
def test_the_whole_flow_by_the_official_client(start: Start, api_target: Path) -> None:
    server = start()

    async def create() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=TOKEN) as client:
            file = await client.files.create(file=training_data(), purpose="fine-tune")
            job = await client.fine_tuning.jobs.create(**request(api_target, file.id))
        assert job.status in ("queued", "running")
        return job.id

    job_id = asyncio.run(create())
    client = server.client()
    # A server that is killed goes on with the job.
    wait(client, job_id, until=lambda _: any("Stage" in m for m in messages(client, job_id)))
    server.end(signal.SIGKILL)
    client = start().client()
    job = wait(client, job_id, until=is_over)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == f"specpipe:specdec-example:{job_id}"
    told = messages(client, job_id)
    assert told[0] == "The job is in the queue"
    assert "The job goes on" in told
    assert told[-1].startswith("The job is done")
    events: list[Any] = list(client.fine_tuning.jobs.list_events(job_id))
    steps = [event.data["step"] for event in events if event.data]
    assert steps == sorted(steps, reverse=True)
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(job_id)
    metrics: Any = checkpoint.metrics
    assert metrics.model_dump()["validation/temperature_1.0/acceptance_rate/head_1"] > 0
    names = downloaded(client, job_id)
    assert set(names) == {"model.safetensors", "config.json"}
    assert json.loads(names["config.json"])["speculators_model_type"] == "eagle3"
    assert [one.id for one in client.fine_tuning.jobs.list()] == [job_id]


@pytest.mark.vllm
@pytest.mark.slow
def test_what_is_downloaded_serves_in_vllm(start: Start, tmp_path: Path) -> None:
    """Of the sample target, whose drafts are accepted: the engine agrees with the replay."""
    client = start().client()
    with (SAMPLE_DATA / "train" / "pretokenized.jsonl").open("rb") as file:
        training = io.BytesIO(b"".join(file.readline() for _ in range(100)))
    training.name = "training.jsonl"
    uploaded = client.files.create(file=training, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        **request(SAMPLE_DATA / "target", uploaded.id, context_length=512, learning_rate=0.002)
    )
    job = wait(client, job.id, until=is_over)
    assert job.status == "succeeded", job.error
    artifact = tmp_path / "downloaded"
    artifact.mkdir()
    for name, data in downloaded(client, job.id).items():
        (artifact / name).write_bytes(data)
    found = validate(
        ValidateConfig(
            artifact=str(artifact),
            dump=str(next((tmp_path / "api").rglob("dump.json")).parent),
            validation=("structure", "replay", "serve"),
            replay_samples=20,
            serve_data=str(prompts_of_one_length(tmp_path / "prompts.jsonl")),
            serve_speculative_tokens=(2,),
            **SHARED,
        )
    )
    assert found.serve is not None
    (measured,) = found.serve.runs
    assert measured.lossless_greedy.passed
    assert measured.greedy is not None
    assert measured.greedy.tau_measured > 1
    assert abs(measured.greedy.relative_difference) <= 0.01


@pytest.mark.slow
def test_jobs_queue_and_are_cancelled(start: Start, api_target: Path) -> None:
    client = start().client()
    file = client.files.create(file=training_data(), purpose="fine-tune")
    body = request(api_target, file.id, n_epochs=500)
    first, second = (client.fine_tuning.jobs.create(**body) for _ in range(2))
    wait(client, first.id, until=lambda job: job.status == "running")
    assert client.fine_tuning.jobs.retrieve(second.id).status == "queued"
    with pytest.raises(openai.ConflictError, match="still needs"):
        client.files.delete(file.id)
    assert client.fine_tuning.jobs.cancel(second.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(first.id).status == "running"
    for _ in range(2):
        client.fine_tuning.jobs.cancel(first.id)
    assert wait(client, first.id, until=is_over).status == "cancelled"
    assert messages(client, second.id)[-1] == "The job was cancelled"
    assert not client.fine_tuning.jobs.checkpoints.list(first.id).data
    with pytest.raises(openai.BadRequestError, match="over"):
        client.fine_tuning.jobs.cancel(first.id)
    assert client.files.delete(file.id).deleted
    assert not client.files.list().data


@pytest.mark.slow
def test_a_job_that_fails_says_why(start: Start, api_target: Path) -> None:
    client = start().client()
    bad = io.BytesIO(b'{"input_ids": [1, 2], "attention_mask": [1], "labels": [1, 2]}\n')
    bad.name = "bad.jsonl"
    file = client.files.create(file=bad, purpose="fine-tune")
    job = wait(
        client, client.fine_tuning.jobs.create(**request(api_target, file.id)).id, until=is_over
    )
    assert job.status == "failed"
    assert job.error.code == "InputError"
    assert "attention_mask" in job.error.message


@pytest.mark.slow
def test_what_is_wrong_is_refused(start: Start, api_target: Path) -> None:
    server = start("--max-upload-mib", "1")
    client = server.client()
    file = client.files.create(file=training_data(3), purpose="fine-tune")
    for changes, name in (
        ({"training_file": "/etc/passwd"}, "training_file"),
        ({"training_file": "http://127.0.0.1:1/x.jsonl"}, "training_file"),
        ({"training_file": "../jobs.sqlite"}, "training_file"),
        ({"method": {"type": "supervised"}}, "method.type"),
        ({"suffix": "../../x"}, "suffix"),
        ({"validation_file": file.id}, "validation_file"),
    ):
        with pytest.raises(openai.BadRequestError, match=name):
            client.fine_tuning.jobs.create(**(request(api_target, file.id) | changes))
    with pytest.raises(openai.BadRequestError, match="num_decoding_heads"):
        client.fine_tuning.jobs.create(**request(api_target, file.id, num_decoding_heads=8))
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=training_data(3), purpose="batch")
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-../../etc")
    with pytest.raises(openai.NotFoundError):
        client.files.content("..%2f..%2fjobs.sqlite")
    hostile = training_data(3)
    hostile.name = "../../escaped.jsonl"
    assert client.files.create(file=hostile, purpose="fine-tune").filename == "escaped.jsonl"
    assert not list(server.log.parent.parent.rglob("escaped.jsonl"))
    too_large = io.BytesIO(b" " * (2 * 2**20))
    with pytest.raises(openai.APIStatusError) as raised:
        client.files.create(file=too_large, purpose="fine-tune")
    assert raised.value.status_code == 413
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    chunks = (piece for piece in [part, *[b" " * 2**16] * 32])  # no length is told
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server.url}/v1/files", content=chunks, headers=bearer(TOKEN) | form)
    assert answer.status_code == 413
    assert len(list((server.log.parent / "api" / "files").iterdir())) == 2


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
def test_a_wrong_token_learns_nothing(shared: Server, header: str) -> None:
    found = {
        (answer.status_code, answer.text)
        for path in ("/v1/files", "/v1/files/file-1", "/v1/fine_tuning/jobs", "/docs", "/nothing")
        for answer in (
            httpx.get(f"{shared.url}{path}", headers={"Authorization": header}),
            httpx.post(f"{shared.url}{path}", headers={"Authorization": header}, content=b"{"),
        )
    }
    assert [code for code, _ in found] == [401]


def test_the_server_is_bound_to_loopback(shared: Server) -> None:
    listening = Path(f"/proc/{shared.process.pid}/net/tcp").read_text()
    addresses = [line.split()[1] for line in listening.splitlines()[1:]]
    of_server = [address for address in addresses if address.endswith(f":{shared.port:04X}")]
    assert of_server[0].startswith("0100007F")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = Server(tmp_path_factory.mktemp("shared") / "api")
    yield server
    server.end()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
