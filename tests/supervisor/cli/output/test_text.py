from __future__ import annotations

import pytest

from mmsup.supervisor.cli.output.text import cell, printable


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
def test_control_characters_are_escaped(text: str, safe: str) -> None:
    assert printable(text) == safe
    assert printable(text).isprintable()


def test_any_value_becomes_one_printable_line() -> None:
    assert [cell(each) for each in (None, True, False, 3, "a\tb", [1])] == ["", "yes", "no", "3", "a\\tb", "[1]"]
