"""The tiny target and its inputs."""

from tests.dump.conftest import target, write_rows

__all__ = ["target", "write_rows"]
