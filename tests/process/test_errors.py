"""Errors that come from another process."""

import pytest

from specpipe.schemas.errors import EngineLostError, IdentityError, SpecpipeError, StoreError
from specpipe.stages.process.errors import error_of, error_record

OURS = [IdentityError("of another dump"), StoreError("no answer"), EngineLostError("gone")]


@pytest.mark.parametrize("error", OURS)
def test_errors_of_ours_are_the_same_here(error: SpecpipeError) -> None:
    here = error_of(error_record(error), "worker 1")
    assert (type(here), str(here), here.exit_code) == (type(error), str(error), error.exit_code)


def test_an_unforeseen_one_says_where_it_was() -> None:
    here = error_of(error_record(KeyError("x")), "worker 1")
    assert type(here) is SpecpipeError
    assert str(here) == "worker 1 failed: KeyError: 'x' (its own log has the traceback)"
