"""The keeper's start: from a descriptor with settings to a loop that runs, or a sentence that says why not.

The order matters. Nothing that another server may own is touched before the locks are held; what a former life left
is ended before its sockets are bound anew; and whoever is told to go away has changed nothing. A keeper that takes the
place of another one in the same process (handover.py) finds all of this done.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Sequence
from typing import Final

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import INHERITED, arm, failpoint, open_control_page
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.ipc.transport.inherited_fds import parse_inherited_fds
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import bootstrap_premises, build_id, preflight, reexec
from mmsup.supervisor.keeper.controller_restart import OOM_SCORE_ADJ
from mmsup.supervisor.keeper.directories import AlreadyRunning, UnsafeDirectory
from mmsup.supervisor.keeper.keeper import Keeper, KeeperProgram
from mmsup.supervisor.keeper.listeners import CannotListen
from mmsup.supervisor.keeper.preflight import PREFLIGHT
from mmsup.supervisor.keeper.reexec import STATE
from mmsup.supervisor.keeper.spawn import become_subreaper, lower_oom_score
from mmsup.supervisor.observability.console import Console

# -P: the directory in which a server is started is no place to import from.
CONTROLLER: Final = (sys.executable, "-P", "-m", "mmsup.supervisor.controller")
SETTINGS_LIMIT_BYTES: Final = MESSAGE_LIMIT // 2
"""Settings go to each brain in one message, with what the last one wanted remembered."""


def main(arguments: Sequence[str], brain: Sequence[str] = CONTROLLER) -> int:
    """Be the keeper until the end; the exit code."""
    code = build_id.loaded_build_id()
    named = parse_inherited_fds(arguments)
    if PREFLIGHT in arguments and STATE in named:
        return preflight.run_preflight(named[STATE], code, with_controller=tuple(brain) == CONTROLLER)
    _reset_process()
    if STATE in named:
        return _resume(named[STATE], brain, code)
    try:
        text = _read_settings(arguments)
        settings = Settings.from_json(text)
        _arm_failpoints(settings)
    except (WireError, ValueError, OSError) as error:
        return _fail(f"no settings: {error}; a keeper is started by `mmsup serve`", exit_codes.USAGE)
    become_subreaper()
    try:
        with contextlib.ExitStack() as held:
            return Keeper(KeeperProgram(text, tuple(brain), code), bootstrap_premises.acquire(settings, held)).run()
    except AlreadyRunning as error:
        return _fail(str(error), exit_codes.ALREADY_RUNNING)
    except (UnsafeDirectory, CannotListen) as error:
        return _fail(str(error), exit_codes.REFUSED)


def _resume(fd: int, brain: Sequence[str], code: str) -> int:
    """In the place of the program that was the keeper until now. It has been rehearsed: nothing here can be refused."""
    estate = reexec.read(fd)
    settings = Settings.from_json(estate.settings)
    _arm_failpoints(settings)
    failpoint("keeper.renewed")
    with contextlib.ExitStack() as held:
        kept = bootstrap_premises.adopt(estate, settings, held)
        return Keeper(KeeperProgram(estate.settings, tuple(brain), code), kept, estate).run()


def _arm_failpoints(settings: Settings) -> None:
    """For tests: this server fails where the range says so that its environment names. It says that it does."""
    if settings.fault_points:
        arm({INHERITED: open_control_page(settings.fault_points)}, "keeper")
        Console(settings.log_format).log("warning", "fault_points", path=settings.fault_points)


def _reset_process() -> None:
    """What a shell, a service manager or the command line may have left behind in this process."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a closed standard descriptor would be given to something else
    os.close(fd)
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        with contextlib.suppress(OSError):  # the listing's own is gone
            os.set_inheritable(fd, fd <= 2)
    os.umask(0o077)
    lower_oom_score(OOM_SCORE_ADJ)
    # Five descriptors a child; each child sets its own bound.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _read_settings(arguments: Sequence[str]) -> str:
    """The settings, from the descriptor that the arguments name."""
    named = [each.removeprefix("settings=") for each in arguments if each.startswith("settings=")]
    if len(named) != 1:
        raise ValueError("settings=FD is wanted, once")
    with open(int(named[0]), encoding="utf-8") as file:
        text = file.read()
    if len(json.dumps(text)) > SETTINGS_LIMIT_BYTES:
        raise ValueError(f"{len(text)} characters are too many; say less in the server's file")
    return text


def _fail(text: str, code: int) -> int:
    print(f"mmsup: {text}", file=sys.stderr)  # noqa: T201 - before there is a loop, a person reads it
    return code
