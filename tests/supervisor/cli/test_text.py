from __future__ import annotations

import pytest

from mmsup.supervisor.cli.text import age, cell, printable


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (-1.0, "0.0s"),
        (0.44, "0.4s"),
        (12.9, "12s"),
        (200, "3m 20s"),
        (7500, "2h 5m"),
        (4 * 86400 + 3700, "4d 1h"),
    ],
)
def test_age_has_two_units_at_most(seconds: float | None, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("bert-2", "bert-2"),
        ("käse 模型", "käse 模型"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines", "two\\nlines"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("right\u202eleft", "right\\u202eleft"),
        ("lone \udc80", "lone \\udc80"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
    ],
)
def test_nothing_that_steers_a_terminal_stays(text: str, safe: str) -> None:
    assert printable(text) == safe
    assert printable(text).isprintable()


def test_a_cell_is_one_line_of_safe_text_whatever_came() -> None:
    assert [cell(each) for each in (None, True, False, 3, "a\tb", [1])] == ["", "yes", "no", "3", "a\\tb", "[1]"]
