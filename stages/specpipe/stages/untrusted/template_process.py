"""The process in which chat templates are rendered: whatever one of them does, it ends here.

A request is a JSON object of `template` and perhaps `variables`; its answer has `markers`, or
`text` and `spans`, or says why there is none: `wrong` for what is no template, `refused` for what
the template does not take. Both are framed by their length in eight bytes.
"""

import json
import resource
import signal
import sys
from functools import lru_cache
from typing import IO, Any

import jinja2

from specpipe.stages.untrusted.chat_template import SandboxedTemplate

MOST_SECONDS = 10
"""Of CPU for one text; a conversation of a million tokens takes less than one."""
MOST_BYTES = 2**30
"""Of memory, in all."""

_LONGEST_MESSAGE = 1000
"""Most characters of an error that are passed on."""

_compiled = lru_cache(maxsize=8)(SandboxedTemplate)


def read_frame(stream: IO[bytes]) -> Any:
    """The next value; raises EOFError where the other side is gone."""
    size = stream.read(8)
    data = stream.read(int.from_bytes(size)) if len(size) == 8 else b""
    if not data:
        raise EOFError
    return json.loads(data)


def write_frame(stream: IO[bytes], value: Any) -> None:
    """Raises TypeError and ValueError for a value that JSON cannot hold."""
    data = json.dumps(value).encode()
    stream.write(len(data).to_bytes(8) + data)
    stream.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MOST_BYTES)
    while True:
        try:
            request = read_frame(sys.stdin.buffer)
        except EOFError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + MOST_SECONDS)
        write_frame(sys.stdout.buffer, _answer(request))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        template = _compiled(request["template"])
    except jinja2.TemplateSyntaxError as error:
        return {"wrong": f"in line {error.lineno}: {_shortened(str(error))}"}
    except Exception as error:  # the parser and Python's compiler fail in ways of their own
        return {"wrong": f"({_told(error)})"}
    if "variables" not in request:
        return {"markers": template.markers}
    try:
        text, spans = template.render(request["variables"])
    except Exception as error:  # a template is a program: it raises whatever it comes to
        return {"refused": _told(error)}
    return {"text": text, "spans": spans}


def _told(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MOST_BYTES >> 30} GiB of memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return _shortened(str(error))


def _shortened(text: str) -> str:
    """A template says what it likes, and as much."""
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} ..."


def _limit(what: int, most: int) -> None:
    """Lower a limit, as far as the system lets us."""
    try:
        resource.setrlimit(what, (most, resource.getrlimit(what)[1]))
    except (ValueError, OSError):
        return


if __name__ == "__main__":
    main()
