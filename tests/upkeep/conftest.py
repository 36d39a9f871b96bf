"""The tiny target, its inputs, and dumps of them."""

from tests.dump.conftest import make_config, make_rows, target, write_rows

__all__ = ["make_config", "make_rows", "target", "write_rows"]
