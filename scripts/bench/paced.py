"""A training in a process of its own that makes steps when it is asked to.

Both sides of the training benchmark run so, in turn: their own loop calls `Gate.step` after every
optimiser step, and stands still in it until more steps are asked for. Standard library only, as
it also runs in the other side's environment.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Protocol, Self

from scripts.bench.resident import forget_peak, peak, resident

Values = dict[str, Any]


class Paced:
    """The parent's side. A context manager, which ends the process."""

    def __init__(
        self, python: str, module: str, values: Values, environment: Mapping[str, str]
    ) -> None:
        self._module = module
        self._words: IO[bytes] = TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            [python, "-m", module, json.dumps(values)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._words.close()

    def ask(self, **request: Any) -> Values:
        """Make `steps` steps; the answer says what they took.

        Bytes of resident memory are at the `start`, `before` the first step, and the `peak` since
        then; `seconds`, `cpu_seconds`, `tokens`, `losses` and `data_wait` are of these steps.
        Raises RuntimeError with the process's last words where it ends instead.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            ended = self._process.wait()
            self._words.seek(0)
            text = self._words.read().decode(errors="replace")[-4000:]
            raise RuntimeError(f"{self._module} ended with {ended}:\n{text}")
        found: Values = json.loads(line)
        return found


class Watch(Protocol):
    """Looks at some steps more closely than a clock does."""

    def begin(self, request: Values) -> None: ...
    def end(self, request: Values) -> Values: ...


class Gate:
    """The child's side."""

    def __init__(self, watch: Watch | None = None) -> None:
        # Libraries print to standard output too.
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._watch = watch
        self._request: Values = {}
        self._left = 0
        self._found: Values = {}
        self._began = (0.0, 0.0)
        self._found["start"] = resident()

    def ready(self) -> None:
        """To be called once everything is built, before the first step."""
        self._found["built_peak"] = peak()
        self._found["before"] = resident()
        forget_peak()
        self._wait()

    def step(self, num_tokens: int, loss: float, data_wait: float = 0.0) -> None:
        """To be called after every step; returns when there is to be another."""
        self._found["tokens"] += num_tokens
        self._found["data_wait"] += data_wait
        self._found["losses"].append(loss)
        self._left -= 1
        if self._left:
            return
        wall, cpu = self._began
        self._found |= {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "peak": peak(),
        }
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            self._found["device_peak"] = sys.modules["torch"].cuda.max_memory_allocated()
        if self._watch is not None:
            self._found |= self._watch.end(self._request)
        self._replies.write(json.dumps(self._found) + "\n")
        self._replies.flush()
        self._wait()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        self._request = json.loads(line)
        self._left = self._request["steps"]
        self._found |= {"tokens": 0, "losses": [], "data_wait": 0.0}
        if self._watch is not None:
            self._watch.begin(self._request)
        self._began = time.perf_counter(), time.process_time()


def asked() -> Values:
    """What the parent gave the child to begin with."""
    found: Values = json.loads(sys.argv[1])
    return found
