"""The code on disk, tried in a child before the keeper or a brain becomes it.

The child is started as the next keeper would be, reads what that one would be handed, compiles every file of the
package, imports a brain and lets it read what the present one remembers. It touches nothing. It says in one line what
it is, or why it cannot take over; what it does not say (a crash, silence) is a no as well.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
from dataclasses import dataclass
from typing import Any, Final

import mmsup
from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.keeper_control import ChildExited, Spawn
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import build_id, reexec
from mmsup.supervisor.keeper.reexec import STATE, KeeperState
from mmsup.supervisor.keeper.spawn import exec_error, start

PREFLIGHT: Final = "rehearse"
PREFLIGHT_LIMIT_S: Final = 60.0
"""Importing a brain takes under a second; on a cold, busy disk much longer."""
OUTPUT_LIMIT_BYTES: Final = 64 << 10
_NEEDS_RESTART: Final = "a restart is needed"


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What a rehearsal came to. `fault` empty: the code can take over, and `code` is its keeper's digest."""

    error: str = ""
    build_id: str = ""


class Preflight:
    """The child, for the keeper, from its fork until it was reaped and `outcome` was asked."""

    def __init__(self, estate: KeeperState, *, force: bool, now_s: float) -> None:
        """Start it; OSError if there can be no process now. `force`: kept for whoever asks later."""
        self.force = force
        self.deadline_s = now_s + PREFLIGHT_LIMIT_S
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as theirs:
            memory = reexec.write(estate)
            theirs.callback(os.close, memory)
            failpoint("keeper.trial_pipe")
            self._output, end = os.pipe2(os.O_CLOEXEC)
            failed.callback(os.close, self._output)
            theirs.callback(os.close, end)
            os.set_blocking(self._output, False)
            self._process = start(_spawn(), {STATE: memory}, end)
            failed.pop_all()
        failpoint("keeper.trial_begun")

    @property
    def pid(self) -> int:
        """Its process, the keeper's to reap."""
        return self._process.pid

    def close(self) -> None:
        """Nobody wants to know any more; it is reaped as an orphan is."""
        self.kill()
        close_fds([self._output, self._process.exec_status, self._process.pidfd])

    def kill(self) -> None:
        """It took too long; its death comes as any other."""
        self.deadline_s = float("inf")
        signal.pidfd_send_signal(self._process.pidfd, signal.SIGKILL)

    def result(self, ended: ChildExited) -> PreflightResult:
        """After its death, once: what it came to."""
        not_run = exec_error(self._process.exec_status)
        said = _read_output(self._output)
        close_fds([self._output, self._process.exec_status, self._process.pidfd])
        if not_run:
            return PreflightResult(not_run)
        if ended.signal:
            return PreflightResult(
                f"its trial start was ended by signal {ended.signal}, after {PREFLIGHT_LIMIT_S:g} s at the latest"
            )
        if ended.status:
            return PreflightResult(_error_line(said) or f"its trial start ended with status {ended.status}")
        return _parse_result(said)


def run_preflight(fd: int, code: str, *, with_controller: bool) -> int:
    """In the child: try, say, leave. `code`: the digest of what a keeper has loaded; `fd`: what it would be handed."""
    try:
        estate = reexec.read(fd)
        Settings.from_json(estate.settings)
        for path in build_id.source_files():
            compile(path.read_bytes(), path, "exec", dont_inherit=True)
        if with_controller:
            _try_controller(estate.checkpoint)
    except (WireError, ValueError, SyntaxError, ImportError, OSError) as error:
        print(f"{type(error).__name__}: {error}")  # noqa: T201 - its output is what the keeper reads
        return exit_codes.REFUSED
    print(json.dumps({"code": code, "wire": WIRE_VERSION, "version": mmsup.__version__}))  # noqa: T201 - as above
    return exit_codes.SUCCESS


def _try_controller(remembered: str) -> None:
    importlib.import_module("mmsup.supervisor.controller.__main__")  # the libraries of a brain are no keeper's
    from_text = importlib.import_module("mmsup.supervisor.state.checkpoint").from_text
    if remembered and from_text(remembered) is None:
        raise WireError(f"it cannot read what the running brain remembers: {_NEEDS_RESTART}")


def _spawn() -> Spawn:
    return Spawn(
        token=PREFLIGHT,
        argv=tuple(reexec.command(PREFLIGHT)),
        env=dict(os.environ),
        cwd=".",
        procs_files=(),
        listeners=(),
        counter_tables=False,
        oom_score_adj=0,
        note="",
    )


def _parse_result(said: list[str]) -> PreflightResult:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        told: Any = json.loads(said[-1])  # another version's words, checked here
        if told["wire"] != WIRE_VERSION:
            text = f"version {told['version']} speaks wire {told['wire']}, the running one {WIRE_VERSION}"
            return PreflightResult(f"{text}: {_NEEDS_RESTART}")
        return PreflightResult(build_id=str(told["code"]))
    return PreflightResult("its trial start did not say what it is")


def _read_output(fd: int) -> list[str]:
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, OUTPUT_LIMIT_BYTES).decode(errors="replace").split("\n")[:-1]
    return []


def _error_line(said: list[str]) -> str:
    """The last line, and the place where Python found a fault of syntax."""
    lines = [each.strip() for each in said if each.strip()]
    place = next((each for each in reversed(lines) if each.startswith("File ")), "")
    last = lines[-1] if lines else ""
    return f"{last} ({place})" if place else last
