"""What a keeper holds that is no process: directories, listeners, the lines to people and to systemd."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from mmsup.ipc.failpoints import failpoint
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper.directories import ServerDirectories
from mmsup.supervisor.keeper.listeners import Listeners
from mmsup.supervisor.keeper.reexec import KeeperState
from mmsup.supervisor.linux import cgroup_backend, fd_store
from mmsup.supervisor.linux.sd_notify import SystemdNotifier
from mmsup.supervisor.observability.console import Console


@dataclass(frozen=True, slots=True)
class HeldResources:
    """From `entered` or `taken_over` until the ExitStack that they were given is closed."""

    directories: ServerDirectories
    listeners: Listeners
    notifier: SystemdNotifier
    console: Console


def acquire(settings: Settings, held: contextlib.ExitStack) -> HeldResources:
    """At the start of a server: lock, end what a former life left, bind; Held, Unsafe or CannotListen if that fails."""
    notifier = SystemdNotifier.from_environ(os.environ, os.getpid())
    kept = fd_store.stored_sockets(os.environ, os.getpid())
    console = Console(settings.log_format)
    home = ServerDirectories(settings.state_dir, settings.runtime_dir)
    held.callback(home.release)
    failpoint("keeper.groups")
    groups = cgroup_backend.set_up(cgroup_backend.top_name(settings.state_dir))
    held.callback(cgroup_backend.tear_down, groups)
    home.remove_worker_sockets()
    held.callback(home.remove_worker_sockets)
    listeners = Listeners(settings, kept)
    held.callback(listeners.close)
    failpoint("keeper.listening")
    listeners.store(notifier)
    console.log("info", "keeper_start", pid=os.getpid(), groups=groups.describe(), **listeners.addresses)
    return HeldResources(home, listeners, notifier, console)


def adopt(estate: KeeperState, settings: Settings, held: contextlib.ExitStack) -> HeldResources:
    """In the middle of a server's life: all of it is here already."""
    console = Console(settings.log_format)
    home = ServerDirectories.adopt(settings.runtime_dir, estate.locks)
    held.callback(home.release)
    groups = cgroup_backend.backend(cgroup_backend.top_name(settings.state_dir))
    held.callback(cgroup_backend.tear_down, groups)
    held.callback(home.remove_worker_sockets)
    listeners = Listeners.adopt(estate.listeners, estate.addresses, estate.socket_paths)
    held.callback(listeners.close)
    console.log("info", "keeper_renewed", pid=os.getpid(), life=estate.keeper_generation + 1)
    return HeldResources(home, listeners, SystemdNotifier(estate.notify_address, estate.watchdog_s), console)
