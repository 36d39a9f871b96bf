"""Part f: training from S3 against training from local files, the same dump and steps."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from scripts.bench.child import in_child
from scripts.bench.layout import CONVERSATIONS, SAMPLE_DATA
from scripts.bench.table import heading, note, table
from scripts.bench.threads import ENVIRONMENT as ONE_THREAD
from scripts.bench.threads import one_thread
from scripts.bench.timing import over, with_spread
from specpipe.schemas.settings.stages import DumpConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as run_dump
from specpipe.stages.storage.dump import Dump
from specpipe.stages.storage.store.folder import Folder
from tests.s3 import ENVIRONMENT, S3Server

_START_SECONDS = 60


def bench(
    work: Path, num_conversations: int, num_epochs: int, prefetch_mib: int, repeats: int
) -> None:
    heading("f. Training from S3 against training from local files")
    local = work / "dump"
    data = work / "conversations.jsonl"
    data.write_text("".join(CONVERSATIONS.read_text().splitlines(True)[:num_conversations]))
    config = DumpConfig(
        target=str(SAMPLE_DATA / "target"),
        data=(str(data),),
        out=str(local),
        backend="hf",
        shard_tokens=8192,
    )
    with one_thread():
        run_dump(config)
    dump = Dump.open(str(local))
    with _server() as server:
        remote = f"{server.make_bucket()}/dump"
        _copy(Folder.open(str(local)), Folder.open(remote))
        found = _alternate(
            work, {"S3": remote, "local": str(local)}, num_epochs, prefetch_mib, repeats
        )
    rows = [
        (
            place,
            with_spread([r["seconds"] for r in results]),
            with_spread([r["num_tokens"] / r["seconds"] for r in results], 0),
            with_spread([100 * r["data_wait"] / r["seconds"] for r in results]),
        )
        for place, results in found.items()
    ]
    steps = found["local"][0]["steps"]
    note(
        f"{num_conversations} conversations of sample_data/train ({dump.num_bytes / 1e6:.0f} MB in "
        f"{len(dump.manifests)} shards), {num_epochs} epochs, {steps} steps, --prefetch-mib "
        f"{prefetch_mib}, on one thread. The S3 server is moto, a process of its own on this "
        "machine, which takes from the same cores what it serves. Seconds are the training "
        "loop's, two small evaluations and the checkpoints included; every crc is "
        "checked on both sides, when a chunk is read. "
        f"{repeats} runs of each, in turn; median (least to most)."
    )
    table(("dump on", "seconds", "tokens/s", "waiting for data, % of the time"), rows)
    speeds = {
        place: [r["num_tokens"] / r["seconds"] for r in results] for place, results in found.items()
    }
    ratios = over(speeds["S3"], speeds["local"])
    note(f"Tokens/s from S3 / local: {with_spread(ratios)} (median {median(ratios):.2f}).")


def _alternate(
    work: Path, dumps: dict[str, str], num_epochs: int, prefetch_mib: int, repeats: int
) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {place: [] for place in dumps}
    for number in range(repeats + 1):
        for place, url in dumps.items():
            config = TrainConfig(
                dump=url,
                out=str(work / "run"),
                num_epochs=num_epochs,
                batch_tokens=8192,
                prefetch_mib=prefetch_mib,
                held_out_fraction=0.2,
                # Reading it all before the first step would make both runs wait for that.
                preverify="metadata",
                # Evaluations before the first step and after the last, and small.
                eval_every=10**6,
                eval_tokens=4096,
            )
            result = in_child("scripts.bench.train_side", config.model_dump(), ONE_THREAD)
            shutil.rmtree(work / "run")
            if number:  # The first of each warms up the page cache.
                found[place].append(result)
    same = {(r["steps"], r["num_tokens"], r["loss"]) for rs in found.values() for r in rs}
    if len(same) != 1:
        raise RuntimeError(f"the runs are not the same run: {same}")
    return found


def _copy(source: Folder, target: Folder) -> None:
    for key in source.list():
        target.write(key, source.read(key))


@contextmanager
def _server() -> Iterator[S3Server]:
    """A moto server as a process, and the environment by which s3fs finds it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [
        str(Path(sys.executable).with_name("moto_server")),
        "-H",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    before = dict(os.environ)
    os.environ |= {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        os.environ.pop(name, None)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_answers(endpoint, process)
        yield S3Server(endpoint)
    finally:
        process.terminate()
        process.wait()
        os.environ.clear()
        os.environ |= before


def _wait_until_it_answers(endpoint: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the moto server does not start") from None
            time.sleep(0.1)
