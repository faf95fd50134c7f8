"""Each code belongs to one family and comes back from the wire as it went."""

from __future__ import annotations

import pytest

from mmsup.ipc.errors import ERROR_CLASSES, MmsupError, ServerError, make_error

CODES = [(code, family) for family in ERROR_CLASSES for code in family.codes]


def test_no_code_is_in_two_families() -> None:
    assert len({code for code, _ in CODES}) == len(CODES)


@pytest.mark.parametrize(("code", "family"), CODES)
def test_a_code_makes_its_error_again(code: str, family: type[MmsupError]) -> None:
    error = make_error(code, "text", model="m", retry_after_s=2)
    assert type(error) is family
    assert (error.code, error.text, error.model, error.retry_after_s) == (code, "text", "m", 2)
    assert error.retryable is family.codes[code]
    assert make_error(code, "text", retryable=not family.codes[code]).retryable is not family.codes[code]


def test_a_code_that_nobody_knows_is_a_bug_of_ours() -> None:
    error = make_error("no_such_code", "text")
    assert isinstance(error, ServerError)
    assert error.code == "internal"
