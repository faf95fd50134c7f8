"""What a keeper holds that is no process: directories, listeners, the lines to people and to systemd."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from mmsup.ipc.failpoints import faultpoint
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper.directories import Home
from mmsup.supervisor.keeper.listeners import Listeners
from mmsup.supervisor.keeper.reexec import Estate
from mmsup.supervisor.linux import cgroup_backend, fd_store
from mmsup.supervisor.linux.sd_notify import Notifier
from mmsup.supervisor.observability.console import Console


@dataclass(frozen=True, slots=True)
class Premises:
    """From `entered` or `taken_over` until the ExitStack that they were given is closed."""

    home: Home
    listeners: Listeners
    notifier: Notifier
    console: Console


def entered(settings: Settings, held: contextlib.ExitStack) -> Premises:
    """At the start of a server: lock, end what a former life left, bind; Held, Unsafe or CannotListen if that fails."""
    notifier = Notifier.from_environ(os.environ, os.getpid())
    kept = fd_store.handed_back(os.environ, os.getpid())
    console = Console(settings.log_format)
    home = Home(settings.state_dir, settings.runtime_dir)
    held.callback(home.release)
    faultpoint("keeper.groups")
    groups = cgroup_backend.settle(cgroup_backend.top_name(settings.state_dir))
    held.callback(cgroup_backend.leave, groups)
    home.sweep()
    held.callback(home.sweep)
    listeners = Listeners(settings, kept)
    held.callback(listeners.close)
    faultpoint("keeper.listening")
    listeners.keep(notifier)
    console.say("info", "keeper_start", pid=os.getpid(), groups=groups.describe(), **listeners.addresses)
    return Premises(home, listeners, notifier, console)


def taken_over(estate: Estate, settings: Settings, held: contextlib.ExitStack) -> Premises:
    """In the middle of a server's life: all of it is here already."""
    console = Console(settings.log_format)
    home = Home.taken_over(settings.runtime_dir, estate.locks)
    held.callback(home.release)
    groups = cgroup_backend.backend(cgroup_backend.top_name(settings.state_dir))
    held.callback(cgroup_backend.leave, groups)
    held.callback(home.sweep)
    listeners = Listeners.taken_over(estate.listeners, estate.addresses, estate.socket_paths)
    held.callback(listeners.close)
    console.say("info", "keeper_renewed", pid=os.getpid(), life=estate.life + 1)
    return Premises(home, listeners, Notifier(estate.notify_address, estate.watchdog_s), console)
