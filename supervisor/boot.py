"""The keeper's start: from a descriptor with settings to a loop that runs, or a sentence that says why not.

The order matters. Nothing that another server may own is touched before the locks are held; what a former life left
is ended before its sockets are bound anew; and whoever is told to go away has changed nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Sequence
from typing import Final

from mmsup.ipc import exits
from mmsup.ipc.records import WireError
from mmsup.ipc.seqpacket import MESSAGE_LIMIT
from mmsup.supervisor import cgroup, fdstore
from mmsup.supervisor.console import Console
from mmsup.supervisor.home import Held, Home, Unsafe
from mmsup.supervisor.keeper import Keeper
from mmsup.supervisor.listeners import CannotListen, Listeners
from mmsup.supervisor.notify import Notifier
from mmsup.supervisor.settings import Settings
from mmsup.supervisor.spawn import become_subreaper, lower_oom_score
from mmsup.supervisor.succession import OOM_SCORE

# -P: the directory in which a server is started is no place to import from.
BRAIN: Final = (sys.executable, "-P", "-m", "mmsup.supervisor.run")
SETTINGS_BYTES: Final = MESSAGE_LIMIT // 2
"""Settings go to each brain in one message, with what the last one wanted remembered."""


def main(arguments: Sequence[str], brain: Sequence[str] = BRAIN) -> int:
    """Be the keeper until the end; the exit code."""
    _tidy()
    try:
        text = _text(arguments)
        settings = Settings.from_json(text)
    except (WireError, ValueError, OSError) as error:
        return _refuse(f"no settings: {error}; a keeper is started by `mmsup serve`", exits.USAGE)
    try:
        return _serve(text, settings, brain)
    except Held as error:
        return _refuse(str(error), exits.HELD)
    except (Unsafe, CannotListen) as error:
        return _refuse(str(error), exits.REFUSED)


def _serve(text: str, settings: Settings, brain: Sequence[str]) -> int:
    notifier = Notifier.from_environ(os.environ, os.getpid())
    kept = fdstore.handed_back(os.environ, os.getpid())
    console = Console(settings.log_format)
    with contextlib.ExitStack() as held:
        home = Home(settings.state_dir, settings.runtime_dir)
        held.callback(home.release)
        become_subreaper()
        groups = cgroup.settle(cgroup.top_name(settings.state_dir))
        held.callback(cgroup.leave, groups)
        home.sweep()
        held.callback(home.sweep)
        listeners = Listeners(settings, kept)
        held.callback(listeners.close)
        listeners.keep(notifier)
        console.say("info", "keeper_start", pid=os.getpid(), groups=groups.describe(), **listeners.addresses)
        return Keeper(text, brain, listeners, notifier, console).run()


def _tidy() -> None:
    """What a shell, a service manager or the command line may have left behind in this process."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a closed standard descriptor would be given to something else
    os.close(fd)
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        with contextlib.suppress(OSError):  # the listing's own is gone
            os.set_inheritable(fd, fd <= 2)
    os.umask(0o077)
    lower_oom_score(OOM_SCORE)
    # Five descriptors a child; each child sets its own bound.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _text(arguments: Sequence[str]) -> str:
    """The settings, from the descriptor that the arguments name."""
    named = [each.removeprefix("settings=") for each in arguments if each.startswith("settings=")]
    if len(named) != 1:
        raise ValueError("settings=FD is wanted, once")
    with open(int(named[0]), encoding="utf-8") as file:
        text = file.read()
    if len(json.dumps(text)) > SETTINGS_BYTES:
        raise ValueError(f"{len(text)} characters are too many; say less in the server's file")
    return text


def _refuse(text: str, code: int) -> int:
    print(f"mmsup: {text}", file=sys.stderr)  # noqa: T201 - before there is a loop, a person reads it
    return code
