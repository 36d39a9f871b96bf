"""The engine's process, with a package in vLLM's place that only waits."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

WAITING = """
import os, time
pipe = os.open({pipe!r}, os.O_WRONLY)
os.write(pipe, b"%d " % os.getpid())
time.sleep(300)
"""

PARENT = """
from specpipe.stages.validate.serve.engine import EngineRequest, decode
decode(EngineRequest(
    target="-", artifact=None, prompts=[[3]], max_tokens=1, temperatures=[0.0], seed=0
))
"""


def test_engine_ends_with_a_killed_parent(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(WAITING.format(pipe=str(pipe)))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    with pipe.open("rb", buffering=0) as alive:
        engine = int(alive.read(64))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        # The engine's end of the pipe closes with it.
        ended, _, _ = select.select([alive], [], [], 60)
        if not ended:
            os.kill(engine, signal.SIGKILL)
    assert ended
