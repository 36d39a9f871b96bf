"""The dump that runs train on."""

from tests.train.conftest import dump, make_dump

__all__ = ["dump", "make_dump"]
