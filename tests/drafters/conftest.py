"""What the tests of all drafters share."""

from tests.served import one_engine_without_a_drafter

__all__ = ["one_engine_without_a_drafter"]
