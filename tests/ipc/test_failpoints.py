"""Failpoints: each is in the table, free while not armed, and fires once, by an error, a delay or a kill."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
import timeit
from collections import Counter
from pathlib import Path

import pytest

from harness.failpoint_file import DELAY_MS, FailpointFile, FailpointSite, all_sites
from mmsup.ipc.failpoints import POINTS, ROLES, FailpointAction, failpoint, open_control_page

ROOT = Path(__file__).resolve().parents[2]
FREE_S = 2e-6
"""An order of magnitude above the real cost, for a busy machine."""
HIT_FAILPOINTS = """
import sys
from mmsup.ipc.failpoints import arm, failpoint, open_control_page
arm({"points": open_control_page(sys.argv[1])}, sys.argv[2])
for word in sys.argv[3:]:
    name, _, subject = word.partition("@")
    try:
        failpoint(name, subject)
        print("passed")
    except OSError as error:
        print("raised", error.errno)
"""


def hit(made: FailpointFile, role: str, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIT_FAILPOINTS, str(made.path), role, *names]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def calls() -> Counter[str]:
    found: Counter[str] = Counter()
    for folder in ("gateway", "ipc", "supervisor", "worker"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)) if "failpoint(" in text else ():
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("failpoint"):
                    for name in literals(node.args[0]):
                        found[name] += 1
                        assert name.partition(".")[0] in (folder, "keeper", "brain"), (
                            f"{path}: {name} is in the wrong folder"
                        )
    return found


def literals(node: ast.expr) -> list[str]:
    if isinstance(node, ast.IfExp):
        return [*literals(node.body), *literals(node.orelse)]
    assert isinstance(node, ast.Constant), f"the name of a failpoint is a literal: {ast.unparse(node)}"
    return [str(node.value)]


def test_every_failpoint_of_the_table_is_in_the_code_exactly_once_and_no_other_is() -> None:
    assert calls() == Counter(dict.fromkeys(POINTS, 1))


def test_every_failpoint_has_a_description_and_known_roles() -> None:
    for name, point in POINTS.items():
        assert set(point.roles or (name.partition(".")[0],)) <= set(ROLES), name
        assert point.description, name
    assert len(set(all_sites())) == len(list(all_sites()))


def test_a_failpoint_costs_next_to_nothing_while_it_is_not_armed() -> None:
    count = 20_000
    best = min(timeit.repeat(lambda: failpoint("gateway.sent", "bert"), number=count, repeat=5))
    assert best / count < FREE_S


@pytest.mark.slow
def test_only_the_nth_hit_raises_the_error_of_its_failpoint(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "page")
    made.order(FailpointAction.RAISE, FailpointSite("brain", "brain.file_write"), nth=2)
    done = hit(made, "brain", "brain.file_write", "brain.file_sync", "brain.file_write", "brain.file_write")
    assert done.stdout.splitlines() == ["passed", "passed", "raised 28", "passed"], done.stderr
    assert made.fired
    assert made.hits()[FailpointSite("brain", "brain.file_write")] == 3


@pytest.mark.slow
def test_a_kill_fires_once_and_the_next_process_survives(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "page")
    made.order(FailpointAction.KILL)
    assert hit(made, "keeper", "keeper.forked").returncode == -signal.SIGKILL
    assert hit(made, "keeper", "keeper.forked").stdout == "passed\n"


@pytest.mark.slow
def test_a_delay_delays_and_continues(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "page")
    began = time.monotonic()
    hit(made, "brain", "brain.ready")
    undelayed = time.monotonic()
    made.order(FailpointAction.DELAY)
    assert hit(made, "brain", "brain.ready").stdout == "passed\n"
    assert made.fired
    assert time.monotonic() - undelayed >= DELAY_MS / 1e3
    assert undelayed - began > 0


@pytest.mark.slow
def test_other_roles_other_models_and_failpoints_without_an_error_are_not_counted(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "page")
    made.order(FailpointAction.RAISE, subject="bert")
    done = hit(made, "gateway", "gateway.sent@bert", "ipc.pair_send@other", "ipc.pair_send@bert")
    assert done.stdout.splitlines() == ["passed", "passed", "raised 105"], done.stderr
    made.order(FailpointAction.RAISE, FailpointSite("keeper", "ipc.send"))
    assert hit(made, "brain", "ipc.send").stdout == "passed\n"
    assert not made.disarm()


def test_a_control_page_that_other_users_could_write_is_refused(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "page")
    os.close(open_control_page(str(made.path)))
    made.path.chmod(0o620)
    with pytest.raises(ValueError, match="not a private control page"):
        open_control_page(str(made.path))
    link = tmp_path / "link"
    link.symlink_to(made.path)
    with pytest.raises(OSError, match="symbolic links"):
        open_control_page(str(link))


def test_a_file_that_is_no_control_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_bytes(bytes(8192))
    path.chmod(0o600)
    with pytest.raises(ValueError, match="not a private control page"):
        open_control_page(str(path))
