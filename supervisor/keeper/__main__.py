"""`python -m mmsup.supervisor.keeper settings=FD`: the keeper process.

With `estate=FD` it continues as the next program of a running keeper (reexec.py); with `rehearse` beside that it only
tests whether it could (preflight.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Final

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import INHERITED, arm, failpoint, open_control_page
from mmsup.ipc.inspection import forbid_inspection
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import bootstrap, build_id, reexec
from mmsup.supervisor.keeper.directories import AlreadyRunning, UnsafeDirectory
from mmsup.supervisor.keeper.keeper import Keeper, KeeperProgram
from mmsup.supervisor.keeper.listeners import CannotListen
from mmsup.supervisor.keeper.preflight import PREFLIGHT, run_preflight
from mmsup.supervisor.keeper.reexec import STATE
from mmsup.supervisor.keeper.spawn import become_subreaper
from mmsup.supervisor.observability.console import Console

# -P: the directory in which a server is started is no place to import from.
CONTROLLER: Final = (sys.executable, "-P", "-m", "mmsup.supervisor.controller")
SETTINGS_LIMIT_BYTES: Final = MESSAGE_LIMIT // 2
"""KeeperInventory carries the settings, and the addresses of the listeners beside them, in one message."""


def main(arguments: Sequence[str], controller: Sequence[str] = CONTROLLER) -> int:
    code = build_id.loaded_build_id()
    inherited = parse_inherited_fds(arguments)
    if PREFLIGHT in arguments and STATE in inherited:
        forbid_inspection(os.environ)
        return run_preflight(inherited[STATE], code, with_controller=tuple(controller) == CONTROLLER)
    bootstrap.reset_process()
    forbid_inspection(os.environ)  # last: from now on the files of this process in /proc belong to root
    if STATE in inherited:
        return _resume(inherited[STATE], controller, code)
    try:
        text = _read_settings(arguments)
        settings = Settings.from_json(text)
        _arm_failpoints(settings)
    except (WireError, ValueError, OSError) as error:
        return _fail(f"no settings: {error}; a keeper is started by `mmsup serve`", exit_codes.USAGE)
    become_subreaper()
    try:
        with contextlib.ExitStack() as stack:
            return Keeper(KeeperProgram(text, tuple(controller), code), bootstrap.acquire(settings, stack)).run()
    except AlreadyRunning as error:
        return _fail(str(error), exit_codes.ALREADY_RUNNING)
    except UnsafeDirectory as error:
        return _fail(str(error), exit_codes.REFUSED if error.is_transient else exit_codes.USAGE)
    except CannotListen as error:
        return _fail(str(error), exit_codes.REFUSED)


def _resume(fd: int, controller: Sequence[str], code: str) -> int:
    """Continue as the next program of this process. The preflight has succeeded, so nothing here is refused."""
    state = reexec.read(fd)
    settings = Settings.from_json(state.settings)
    _arm_failpoints(settings)
    failpoint("keeper.renewed")
    with contextlib.ExitStack() as stack:
        resources = bootstrap.adopt(state, settings, stack)
        return Keeper(KeeperProgram(state.settings, tuple(controller), code), resources, state).run()


def _arm_failpoints(settings: Settings) -> None:
    """For tests: enable the failpoints of the control page that the settings name, and log that they are enabled."""
    if settings.fault_points:
        arm({INHERITED: open_control_page(settings.fault_points)}, "keeper")
        Console(settings.logging).log("warning", "fault_points", path=settings.fault_points)


def _read_settings(arguments: Sequence[str]) -> str:
    """The settings as JSON text, from the descriptor in `settings=FD`."""
    named = [each.removeprefix("settings=") for each in arguments if each.startswith("settings=")]
    if len(named) != 1:
        raise ValueError("settings=FD is required, once")
    with open(int(named[0]), encoding="utf-8") as file:
        text = file.read()
    if len(json.dumps(text)) > SETTINGS_LIMIT_BYTES:
        raise ValueError(f"{len(text)} characters are too many; shorten the server's configuration file")
    return text


def _fail(text: str, code: int) -> int:
    print(f"mmsup: {text}", file=sys.stderr)  # noqa: T201 - before there is a loop, a person reads it
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
