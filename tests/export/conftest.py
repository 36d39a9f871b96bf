"""The tiny drafter and its artifact."""

from tests.validate.conftest import exported, trained

__all__ = ["exported", "trained"]
