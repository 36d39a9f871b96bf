"""Chat templates of strangers, rendered in a process of their own that is bounded.

A template is a program. The sandbox keeps it from files and from Python; what it takes of time and
memory, only the operating system can limit.
"""

import atexit
import os
import subprocess
import sys
from functools import lru_cache
from threading import Lock
from typing import Any

from specpipe.schemas.errors import ConfigError, InputError
from specpipe.stages.untrusted.chat_template import Markers, Span
from specpipe.stages.untrusted.template_process import (
    MOST_BYTES,
    MOST_SECONDS,
    read_frame,
    write_frame,
)


@lru_cache(maxsize=8)
def markers_of(template: str) -> Markers:
    """Whether a template marks what the assistant generates, in a way that can be relied on.

    Raises ConfigError for a template that is no Jinja template.
    """
    markers: Markers = _ask({"template": template})["markers"]
    return markers


def render_template(template: str, variables: dict[str, Any]) -> tuple[str, list[Span]]:
    """The text, and the characters between the template's generation markers.

    Raises ConfigError for a template that is none, or takes more than 10 s of CPU or 1 GiB of
    memory; InputError where it refuses the variables.
    """
    answer = _ask({"template": template, "variables": variables})
    return str(answer["text"]), [(start, stop) for start, stop in answer["spans"]]


class _Renderer:
    """The process, started at the first request and again after one that ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises EOFError where the process ends before it answers."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                write_frame(process.stdin, request)
                answer: dict[str, Any] = read_frame(process.stdout)
            except (TypeError, ValueError):
                raise  # nothing was written: JSON does not hold it
            except BaseException as error:
                self._end()
                if isinstance(error, OSError):
                    raise EOFError from error
                raise
            return answer

    def close(self) -> None:
        if self._owner == os.getpid():
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        # A fork has its parent's pipes, but must not talk through them.
        if self._process is None or self._owner != os.getpid():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "specpipe.stages.untrusted.template_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._owner = os.getpid()
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        continue  # what could not be sent
            process.wait()


_renderer = _Renderer()
atexit.register(_renderer.close)


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = _renderer.ask(request)
    except EOFError:
        # The next text would take as long.
        raise ConfigError(
            f"the chat template takes more than {MOST_SECONDS} s or {MOST_BYTES >> 30} GiB to "
            "render a text"
        ) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"no chat template takes it: {error}") from error
    if "wrong" in answer:
        raise ConfigError(f"the chat template is wrong: {answer['wrong']}")
    if "refused" in answer:
        raise InputError(f"the chat template refuses it: {answer['refused']}")
    return answer
