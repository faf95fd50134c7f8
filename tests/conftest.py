"""What holds for all tests: options of the command line, and what is printed at the end."""

from __future__ import annotations

import pytest

from harness.trial import LINES


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of the fault points is tried, and how long chaos lasts: two minutes as a rule, ten before a release."""
    group = parser.getgroup("mmsup")
    group.addoption("--all-points", action="store_true", help="let each fault point fail in each operation (hours)")
    group.addoption("--points-of", default="", help="the one operation of that loop to try: load, infer, upgrade …")
    group.addoption("--points-seed", help="the seed of an earlier sample of fault points")
    group.addoption("--chaos-seconds", type=float, default=120.0, help="how long the run of chaos takes")
    group.addoption("--chaos-seed", type=int, default=None, help="the seed of that run; a random one is printed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the loop over the fault points has tried."""
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("fault points")
        for line in lines:
            terminalreporter.write_line(line)
