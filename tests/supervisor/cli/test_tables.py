from __future__ import annotations

import io

from mmsup.supervisor.cli.tables import aligned, draw


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_columns_are_aligned_and_nothing_is_cut() -> None:
    reason = "because " * 60
    lines = aligned(["MODEL", ">PID", "REASON"], [["bert", "7", reason.strip()], ["a", "12345", ""]])
    assert lines == ["MODEL    PID  REASON", f"bert       7  {reason.strip()}", "a      12345"]


def test_no_rows_leave_the_heads() -> None:
    assert aligned(["MODEL", ">PID"], []) == ["MODEL  PID"]


def test_a_pipe_gets_neither_colours_nor_widths() -> None:
    out = io.StringIO()
    draw(["MODEL", "STATE"], [["bert", "ready"]], out)
    assert out.getvalue() == "MODEL  STATE\nbert   ready\n"


def test_a_terminal_gets_the_same_words_in_colour() -> None:
    out = Terminal()
    draw(["MODEL", "STATE"], [["[red]bert", "ready"], ["other", "failed"]], out)
    assert "\x1b[32mready" in out.getvalue()
    assert "[red]bert" in out.getvalue(), "a bracket in a name is no markup"
