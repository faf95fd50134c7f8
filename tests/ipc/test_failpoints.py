"""Points are known, free when off, and fire once: by error, by delay, by death."""

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
"""An order of magnitude over what it takes, for a machine that does something else meanwhile."""
PASS_BY = """
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


def come_by(made: FailpointFile, role: str, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PASS_BY, str(made.path), role, *names]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def calls() -> Counter[str]:
    found: Counter[str] = Counter()
    for folder in ("gateway", "ipc", "supervisor", "worker"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("failpoint"):
                    for name in literals(node.args[0]):
                        found[name] += 1
                        assert name.partition(".")[0] in (folder, "keeper", "brain"), f"{path}: {name} stands elsewhere"
    return found


def literals(node: ast.expr) -> list[str]:
    if isinstance(node, ast.IfExp):
        return [*literals(node.body), *literals(node.orelse)]
    assert isinstance(node, ast.Constant), f"a point's name is a literal: {ast.unparse(node)}"
    return [str(node.value)]


def test_every_point_of_the_table_stands_in_the_code_once_and_no_other_does() -> None:
    assert calls() == Counter(dict.fromkeys(POINTS, 1))


def test_every_point_says_who_comes_by_and_what_it_is() -> None:
    for name, point in POINTS.items():
        assert set(point.roles or (name.partition(".")[0],)) <= set(ROLES), name
        assert point.description, name
    assert len(set(all_sites())) == len(list(all_sites()))


def test_a_point_costs_next_to_nothing_while_it_is_off() -> None:
    count = 20_000
    best = min(timeit.repeat(lambda: failpoint("gateway.sent", "bert"), number=count, repeat=5))
    assert best / count < FREE_S


@pytest.mark.slow
def test_the_nth_hit_raises_what_its_point_can_meet_and_no_other_does(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "range")
    made.order(FailpointAction.RAISE, FailpointSite("brain", "brain.file_write"), nth=2)
    done = come_by(made, "brain", "brain.file_write", "brain.file_sync", "brain.file_write", "brain.file_write")
    assert done.stdout.splitlines() == ["passed", "passed", "raised 28", "passed"], done.stderr
    assert made.fired
    assert made.hits()[FailpointSite("brain", "brain.file_write")] == 3


@pytest.mark.slow
def test_a_kill_fires_once_and_the_next_process_lives(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "range")
    made.order(FailpointAction.KILL)
    assert come_by(made, "keeper", "keeper.forked").returncode == -signal.SIGKILL
    assert come_by(made, "keeper", "keeper.forked").stdout == "passed\n"


@pytest.mark.slow
def test_a_delay_passes_later(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "range")
    began = time.monotonic()
    come_by(made, "brain", "brain.ready")
    undelayed = time.monotonic()
    made.order(FailpointAction.DELAY)
    assert come_by(made, "brain", "brain.ready").stdout == "passed\n"
    assert made.fired
    assert time.monotonic() - undelayed >= DELAY_MS / 1e3
    assert undelayed - began > 0


@pytest.mark.slow
def test_other_roles_other_models_and_points_that_cannot_fail_are_not_counted(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "range")
    made.order(FailpointAction.RAISE, subject="bert")
    done = come_by(made, "gateway", "gateway.sent@bert", "ipc.pair_send@other", "ipc.pair_send@bert")
    assert done.stdout.splitlines() == ["passed", "passed", "raised 105"], done.stderr
    made.order(FailpointAction.RAISE, FailpointSite("keeper", "ipc.send"))
    assert come_by(made, "brain", "ipc.send").stdout == "passed\n"
    assert not made.disarm()


def test_a_range_that_others_could_write_arms_nobody(tmp_path: Path) -> None:
    made = FailpointFile(tmp_path / "range")
    os.close(open_control_page(str(made.path)))
    made.path.chmod(0o620)
    with pytest.raises(ValueError, match="not a private range"):
        open_control_page(str(made.path))
    link = tmp_path / "link"
    link.symlink_to(made.path)
    with pytest.raises(OSError, match="symbolic links"):
        open_control_page(str(link))


def test_a_file_that_is_no_range_arms_nobody(tmp_path: Path) -> None:
    path = tmp_path / "range"
    path.write_bytes(bytes(8192))
    path.chmod(0o600)
    with pytest.raises(ValueError, match="not a private range"):
        open_control_page(str(path))
