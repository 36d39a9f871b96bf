"""A real server of vLLM in processes of its own, as somebody starts one to serve a drafter."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specpipe.stages.target.vllm.repairs.register import ENVIRONMENT

START_SECONDS = 600


@contextmanager
def vllm_server(target: Path, artifact: Path, num_draft_tokens: int, token: str) -> Iterator[str]:
    """Its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    speculative = {
        "method": "eagle3",
        "model": str(artifact),
        "num_speculative_tokens": num_draft_tokens,
        "draft_sample_method": "probabilistic",
    }
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(target), "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", "--api-key", token, "--speculative-config", json.dumps(speculative)),
    ]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, ENVIRONMENT: "1"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    # A session of its own: its engine is a process too, and ends with it.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(START_SECONDS):
        assert process.poll() is None, "the server did not start"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise TimeoutError(url)
