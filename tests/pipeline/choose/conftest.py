"""The dump that runs train on, and the toy's package."""

from tests.drafters.test_toy import site
from tests.train.conftest import dump, make_dump

__all__ = ["dump", "make_dump", "site"]
