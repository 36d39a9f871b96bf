"""Tests of engines share what one without a drafter says."""

from tests.served import one_engine_without_a_drafter

__all__ = ["one_engine_without_a_drafter"]
