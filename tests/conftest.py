"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long chaos lasts: two minutes as a rule, ten before a release."""
    parser.addoption("--chaos-seconds", type=float, default=120.0, help="how long the run of chaos takes")
    parser.addoption("--chaos-seed", type=int, default=None, help="the seed of that run; a random one is printed")
