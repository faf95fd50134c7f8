"""What the keeper acquires before its loop runs: directories, cgroups, listeners, the connection to systemd.

The order matters: nothing that another server may own is touched before the directories are locked, and the leftovers
of a previous server are killed before its sockets are bound again. A keeper that is refused has changed nothing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from dataclasses import dataclass

from mmsup.ipc.environment import SOFT_FILES
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.stray_signals import STRAY
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper.controller_restart import OOM_SCORE_ADJ
from mmsup.supervisor.keeper.directories import ServerDirectories
from mmsup.supervisor.keeper.listeners import Listeners
from mmsup.supervisor.keeper.reexec import KeeperState
from mmsup.supervisor.keeper.spawn import set_oom_score
from mmsup.supervisor.linux import cgroup_backend, fd_store
from mmsup.supervisor.linux.orphans import end_orphans_of
from mmsup.supervisor.linux.required_calls import fill_standard_descriptors
from mmsup.supervisor.linux.sd_notify import SystemdNotifier
from mmsup.supervisor.observability.console import Console


@dataclass(frozen=True, slots=True)
class HeldResources:
    """Acquired by `acquire` or `adopt`, released when the ExitStack that was passed to it is closed."""

    directories: ServerDirectories
    listeners: Listeners
    notifier: SystemdNotifier
    console: Console


def acquire(settings: Settings, stack: contextlib.ExitStack) -> HeldResources:
    """At the start of a server. AlreadyRunning, UnsafeDirectory or CannotListen if that fails."""
    notifier = SystemdNotifier.from_environ(os.environ, os.getpid())
    stored = fd_store.stored_sockets(os.environ, os.getpid())
    console = Console(settings.logging)
    directories = ServerDirectories(settings.state_dir, settings.runtime_dir)
    stack.callback(directories.release)
    failpoint("keeper.groups")
    groups = cgroup_backend.set_up(cgroup_backend.top_name(settings.state_dir))
    stack.callback(cgroup_backend.tear_down, groups)
    end_orphans_of(cgroup_backend.top_name(settings.state_dir))
    directories.remove_worker_sockets()
    stack.callback(directories.remove_worker_sockets)
    listeners = Listeners(settings, stored)
    stack.callback(listeners.close)
    failpoint("keeper.listening")
    listeners.store(notifier)
    for each in listeners.warnings:
        console.log("warning", "not_listening", text=each)
    console.log("info", "keeper_start", pid=os.getpid(), groups=groups.description, **listeners.addresses)
    return HeldResources(directories, listeners, notifier, console)


def adopt(state: KeeperState, settings: Settings, stack: contextlib.ExitStack) -> HeldResources:
    """After a re-exec: the process holds everything already."""
    console = Console(settings.logging)
    directories = ServerDirectories.adopt(settings.runtime_dir, state.locks)
    stack.callback(directories.release)
    groups = cgroup_backend.backend(cgroup_backend.top_name(settings.state_dir))
    stack.callback(cgroup_backend.tear_down, groups)
    stack.callback(directories.remove_worker_sockets)
    listeners = Listeners.adopt(state.listeners, state.addresses, state.socket_paths)
    stack.callback(listeners.close)
    console.log("info", "keeper_renewed", pid=os.getpid(), life=state.keeper_generation + 1)
    return HeldResources(directories, listeners, SystemdNotifier(state.notify_address, state.watchdog_s), console)


def reset_process() -> None:
    """Undo what a shell, a service manager or the command line may have left in this process: descriptors, limits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STRAY)  # read with all others once the loop runs
    fill_standard_descriptors()
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
            os.set_inheritable(fd, fd <= 2)
    os.umask(0o077)
    set_oom_score(OOM_SCORE_ADJ)
    # Five descriptors a child. Keeper, controller and gateways never call select(), which cannot hold a number above
    # 1023; a model may, so that workers get the limit back that this process was started with.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.environ.setdefault(SOFT_FILES, str(soft))  # a re-exec finds the raised limit, and the variable
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
