"""Every row of the fault table is shown by a test or listed as open, with the reason."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from faults.rows import OPEN, ROWS

TESTS = Path(__file__).parents[1]


@cache
def rows_shown() -> dict[str, list[str]]:
    """Row to the tests with its mark."""
    shown: dict[str, list[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "mark.fault(" in text else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for row in marks(node):
                    shown.setdefault(row, []).append(f"{path.name}::{node.name}")
    return shown


def marks(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Rows named by `@pytest.mark.fault(…)`."""
    return [
        argument.value
        for each in function.decorator_list
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == "fault"
        for argument in each.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]


def test_every_row_is_shown_by_a_test_or_open_with_a_reason() -> None:
    shown = rows_shown()
    assert set(shown) <= set(ROWS), f"no such rows: {sorted(set(shown) - set(ROWS))}"
    assert set(OPEN) <= set(ROWS)
    assert not set(ROWS) - set(shown) - set(OPEN), (
        f"neither shown nor open: {sorted(set(ROWS) - set(shown) - set(OPEN))}"
    )
    assert all(OPEN.values())


def test_no_row_is_both_shown_and_open() -> None:
    assert not set(rows_shown()) & set(OPEN)
