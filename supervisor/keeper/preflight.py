"""Preflight of a hot upgrade: the code on disk is tested in a child before keeper or controller are replaced by it.

The child is started as the next keeper would be. It reads the keeper's state, compiles every source file, imports the
controller and decodes the checkpoint; it changes nothing. It prints its version as one line of JSON, or the reason why
it cannot take over. A crash or a missing line means that it cannot.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any, Final

import mmsup
from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.keeper_control import ChildExited
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import build_id, reexec
from mmsup.supervisor.keeper.reexec import STATE, KeeperState
from mmsup.supervisor.keeper.spawn import exec_error, own_process, start

PREFLIGHT: Final = "rehearse"
"""The argument of the child; a running keeper starts the code of a later version with it."""
PREFLIGHT_LIMIT_S: Final = 60.0
"""Importing the controller takes under a second; on a cold, busy disk much longer."""
OUTPUT_LIMIT_BYTES: Final = 64 << 10
_NEEDS_RESTART: Final = "a restart is needed"


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """`error` is empty if the code on disk can take over; `build_id` is then that of its keeper."""

    error: str = ""
    build_id: str = ""


class Preflight:
    """The child, as the keeper sees it, from its fork until `result` or `close`."""

    def __init__(self, state: KeeperState, *, force: bool, now_s: float) -> None:
        """Start it; OSError if there is no code to start, or no process can be started now.

        `force`: of the request, used after the preflight.
        """
        _check_installation()
        self.force = force
        self.deadline_s = now_s + PREFLIGHT_LIMIT_S
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as theirs:
            memory = reexec.write(state)
            theirs.callback(os.close, memory)
            failpoint("keeper.trial_pipe")
            self._output, end = os.pipe2(os.O_CLOEXEC)
            failed.callback(os.close, self._output)
            theirs.callback(os.close, end)
            os.set_blocking(self._output, False)
            self._process = start(own_process(PREFLIGHT, reexec.command(PREFLIGHT), 0), {STATE: memory}, end)
            failed.pop_all()
        failpoint("keeper.trial_begun")

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Kill it; its result is not needed. It is reaped as any orphan."""
        self.kill()
        close_fds([self._output, self._process.exec_status, self._process.pidfd])

    def kill(self) -> None:
        """It took too long. Its exit is then handled as any other."""
        self.deadline_s = float("inf")
        signal.pidfd_send_signal(self._process.pidfd, signal.SIGKILL)

    def result(self, exited: ChildExited) -> PreflightResult:
        failure = exec_error(self._process.exec_status)
        lines = _read_output(self._output)
        close_fds([self._output, self._process.exec_status, self._process.pidfd])
        if failure:
            return PreflightResult(failure)
        if exited.signal:
            return PreflightResult(
                f"its trial start was ended by signal {exited.signal}, after {PREFLIGHT_LIMIT_S:g} s at the latest"
            )
        if exited.status:
            return PreflightResult(_error_line(lines) or f"its trial start ended with status {exited.status}")
        return _parse_result(lines)


def _check_installation() -> None:
    """OSError if the folder from which this process was started is not there any more."""
    for path in (sys.executable, str(build_id.PACKAGE / "supervisor" / "keeper" / "__main__.py")):
        if not os.path.exists(path):
            raise OSError(f"{path} is gone; put the installation back there, or restart the server from its new place")


def run_preflight(fd: int, code: str, *, with_controller: bool) -> int:
    """In the child: run the tests and print the result. `code`: the build id of this program; `fd`: the state."""
    try:
        state = reexec.read(fd)
        Settings.from_json(state.settings)
        for path in build_id.source_files():
            compile(path.read_bytes(), path, "exec", dont_inherit=True)
        if with_controller:
            _try_controller(state.checkpoint)
    except (WireError, ValueError, SyntaxError, ImportError, OSError) as error:
        hint = f": {_NEEDS_RESTART}" if isinstance(error, WireError) and _NEEDS_RESTART not in str(error) else ""
        print(f"{type(error).__name__}: {error}{hint}")  # noqa: T201 - its output is what the keeper reads
        return exit_codes.REFUSED
    print(json.dumps({"code": code, "wire": WIRE_VERSION, "version": mmsup.__version__}))  # noqa: T201 - as above
    return exit_codes.SUCCESS


def _try_controller(checkpoint: dict[str, str]) -> None:
    # Imported here only: the keeper itself loads none of its libraries.
    importlib.import_module("mmsup.supervisor.controller.__main__")
    read_checkpoint = importlib.import_module("mmsup.supervisor.controller.recovery").read_checkpoint
    if checkpoint and read_checkpoint(checkpoint) is None:
        raise WireError(f"it cannot read the running controller's checkpoint: {_NEEDS_RESTART}")


def _parse_result(lines: list[str]) -> PreflightResult:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        printed: Any = json.loads(lines[-1])  # by another version, checked here
        if printed["wire"] != WIRE_VERSION:
            text = f"version {printed['version']} speaks wire {printed['wire']}, the running one {WIRE_VERSION}"
            return PreflightResult(f"{text}: {_NEEDS_RESTART}")
        return PreflightResult(build_id=str(printed["code"]))
    return PreflightResult("its trial start did not print its version")


def _read_output(fd: int) -> list[str]:
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, OUTPUT_LIMIT_BYTES).decode(errors="replace").split("\n")[:-1]
    return []


def _error_line(output: list[str]) -> str:
    """The last line, with the file and line of a SyntaxError."""
    lines = [each.strip() for each in output if each.strip()]
    place = next((each for each in reversed(lines) if each.startswith("File ")), "")
    last = lines[-1] if lines else ""
    return f"{last} ({place})" if place else last
