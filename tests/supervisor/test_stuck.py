from __future__ import annotations

import pytest

from mmsup.supervisor.stuck import MOST, is_replaced


@pytest.mark.parametrize(
    ("need_bytes", "available_bytes", "of_model", "replaced"),
    [
        (100, 100, 1, True),
        (101, 100, 1, False),
        (0, 0, 1, True),
        (100, 1000, MOST, True),
        (100, 1000, MOST + 1, False),
    ],
)
def test_another_comes_only_where_both_fit_and_not_too_many_are_stuck(
    need_bytes: int, available_bytes: int, of_model: int, replaced: bool
) -> None:
    assert is_replaced(need_bytes, available_bytes, of_model) is replaced
