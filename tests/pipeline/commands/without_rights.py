"""Run commands as somebody whom the rights of files bind.

    python -m tests.pipeline.commands.without_rights

Standard input is a JSON list of command lines; standard output a JSON list of [exit code, stderr].
Root passes over rights by two of its capabilities, which this process lets go first.
"""

import ctypes
import json
import os
import sys

from tests.pipeline.in_process import specpipe

_VERSION_3 = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2


def be_bound_by_rights() -> None:
    """Raises OSError where the kernel does not let go of the capabilities."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    kept = ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    for at in range(3):
        sets[at] &= kept
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def main() -> None:
    commands = json.load(sys.stdin)
    be_bound_by_rights()
    ended = []
    for command in commands:
        done = specpipe(*command)
        ended.append([done.returncode, done.stderr])
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
