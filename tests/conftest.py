"""Options of the whole suite, and what is printed at its beginning and end."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Generator
from typing import Any

import pytest

from harness import combination
from harness.failpoint_trial import LINES
from mmsup.ipc.environment import DUMPABLE

if os.geteuid():
    # Tests count the descriptors of keeper, controller and gateways, which the same user may not see otherwise.
    os.environ.setdefault(DUMPABLE, "true")
COMBINATION = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of the fault points is tried, how long chaos lasts, and which server options the servers get."""
    group = parser.getgroup("mmsup")
    group.addoption("--all-points", action="store_true", help="let each fault point fail in each operation (hours)")
    group.addoption("--points-of", default="", help="the one operation of that loop to try: load, infer, upgrade …")
    group.addoption("--points-seconds", type=float, default=25.0, help="for how long a sample of them is tried")
    group.addoption("--points-seed", help="the seed of an earlier sample of fault points")
    group.addoption("--breaches", type=int, default=1, help="how often each breach of a memory cap is repeated")
    group.addoption("--storm-operations", type=int, default=25, help="operations of each client in the storm of loads")
    group.addoption("--chaos-seconds", type=float, default=120.0, help="how long the run of chaos takes")
    group.addoption("--chaos-seed", type=int, default=None, help="the seed of that run; a random one is printed")
    group.addoption("--other-clients", default="", help="the folder of clients that other_clients.py has installed")
    group.addoption(
        "--combination",
        choices=(*combination.FLAGS, combination.BY_COMMIT),
        default=combination.DEFAULT,
        help="server options that every server of a test starts with; by-commit takes one of the others by commit id",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose the combination of server options once, before any server starts."""
    config.stash[COMBINATION] = combination.choose(config.getoption("--combination"))


def pytest_report_header(config: pytest.Config) -> str:
    """The combination of server options of this run."""
    return f"server options: {config.stash[COMBINATION]} {' '.join(combination.flags)}".rstrip()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Divide the tests among the worker processes of `--dist loadgroup`, the longest parts first.

    Tests that share a fixture of their file, such as a server, stay together; so do the fast ones of a file. Those that
    need the machine for themselves come last, on one worker.
    """
    if not getattr(config.option, "loadgroup", False):  # set in worker processes only
        return
    for item in items:
        if needs_machine(item):
            item.add_marker(pytest.mark.xdist_group("alone"))
        elif shares_fixture(item) or not is_slow(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(
        key=lambda item: (
            needs_machine(item), not is_slow(item), "faults" not in item.path.parts, not shares_fixture(item)
        )
    )  # fmt: skip


def pytest_collection_finish() -> None:
    """Keep what was collected out of the garbage collector, which would look at all of it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that needs the machine for itself wait until the other workers run none, and keep them waiting."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    assert item.config.inipath is not None
    with item.config.inipath.open() as file:  # any file that all workers can open; the lock ends when it is closed
        fcntl.flock(file, fcntl.LOCK_EX if needs_machine(item) else fcntl.LOCK_SH)
        return (yield)


def needs_machine(item: pytest.Item) -> bool:
    """Whether no other test may run beside it."""
    return any(item.get_closest_marker(name) is not None for name in ("alone", "gpu"))


def is_slow(item: pytest.Item) -> bool:
    """Whether it is left out by `-m "not slow"`."""
    return item.get_closest_marker("slow") is not None


def shares_fixture(item: pytest.Item) -> bool:
    """Whether it uses a fixture that is made once for all tests of its file."""
    assert isinstance(item, pytest.Function)
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return any(each.scope == "module" for found in definitions for each in found)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker process of pytest-xdist sends what its loop over the fault points has tried."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["fault points"] = session.config.stash.get(LINES, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # a WorkerController; without pytest-xdist the hook does not exist
    """Receive that."""
    node.config.stash.setdefault(LINES, []).extend(getattr(node, "workeroutput", {}).get("fault points", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the loop over the fault points has tried."""
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("fault points")
        for line in lines:
            terminalreporter.write_line(line)
