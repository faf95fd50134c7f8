"""The keeper's table of child processes, except the controller: start, signal, record the exit, forget.

The keeper holds five descriptors of each child, so that they outlive every controller:

    pidfd      the process
    control    the controller's end of the child's control channel
    page       the child's status page
    crash      the pipe to which faulthandler writes a stack trace
    log        the child's standard output and error

and of a zygote a sixth, its fork channel, which is the keeper's own (forking/forks.py). A member of a co-location group
runs in the process of another child, its host, and has the first three and the host's end of its control channel.

A controller gets duplicates of the five with ChildDescriptors; the keeper closes its own after ForgetChild.
Nothing here waits.
"""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import (
    ChildDescriptors,
    ChildExited,
    SignalChild,
    Spawn,
    SpawnFailed,
)
from mmsup.ipc.paths import worker_name
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.keeper.dying_cgroups import DyingGroups
from mmsup.supervisor.keeper.forking.forks import Forks
from mmsup.supervisor.keeper.forking.members import MEMBER_DESCRIPTORS, member_descriptors
from mmsup.supervisor.keeper.forking.new_descriptors import new_descriptors
from mmsup.supervisor.keeper.spawn import exec_error, set_oom_score, start
from mmsup.supervisor.linux import process_tree
from mmsup.supervisor.linux.idle_group import is_idle_group
from mmsup.supervisor.linux.orphans import Orphans
from mmsup.supervisor.processes.launch_spec import parse_token

ANNOUNCED: Final = 5
"""So many descriptors of a child go to a controller."""
Send = Callable[[object, Sequence[int]], None]


@dataclass(slots=True)
class Child:
    """One child, from its fork until ForgetChild. Written into KeeperState as it is."""

    message: ChildDescriptors
    descriptors: tuple[int, ...]
    """In the order of the module's docstring."""
    procs_files: tuple[str, ...]
    """`cgroup.procs` files of the control groups that are its own; empty without cgroups."""
    exec_status: int | None
    """Until its program runs: the pipe that reports a failed exec (spawn.py)."""
    is_announced: bool = False
    """ChildDescriptors was sent to a controller."""
    exited: ChildExited | None = None

    @property
    def pidfd(self) -> int:
        return self.descriptors[0]

    @property
    def is_member(self) -> bool:
        """It runs in the process of another child, and exits with it."""
        return len(self.descriptors) == MEMBER_DESCRIPTORS

    def close_exec_status(self) -> None:
        if self.exec_status is not None:
            os.close(self.exec_status)
            self.exec_status = None

    def close(self) -> None:
        self.close_exec_status()
        close_fds(self.descriptors)
        self.descriptors = ()


class Children:
    """All children by token, and the control groups of those that have exited until these are empty."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        lifeline: int,
        shared_descriptors: Callable[[Spawn], Mapping[str, int]],
        send: Send,
        server: str,
    ) -> None:
        """`server`: its name in the marks of workers' descendants.

        `shared_descriptors`: what a child inherits beside its own; OSError if it names what does not exist.
        `send`: to the controller."""
        self._selector = selector
        self._lifeline = lifeline
        self._shared_descriptors = shared_descriptors
        self._send = send
        self._children: dict[str, Child] = {}
        self._oom_scores: dict[str, int] = {}
        """Of children whose program does not run yet, by token."""
        self.forks = Forks(
            selector,
            lambda spawn, pid, fds: self._announce(
                Child(ChildDescriptors(spawn.token, pid, spawn.note), fds, _own_groups(spawn), None)
            ),
            self.spawn,
            send,
        )
        self.dying_groups = DyingGroups()
        self.orphans = Orphans(server, lambda: _living_workers(self._children, self.forks.tokens()))

    def __len__(self) -> int:
        """Living children, and exited ones that are not forgotten yet."""
        return len(self._children)

    @property
    def is_empty(self) -> bool:
        """No child lives, and no control group of one holds a process."""
        return not self.dying_groups.groups and all(each.exited for each in self._children.values())

    def announce_all(self) -> None:
        """Send a new controller every child, and its exit if it has exited."""
        for child in self._children.values():
            self._announce(child)
            if child.exited is not None:
                self._send(child.exited, ())

    def spawn(self, spawn: Spawn) -> None:
        """Start a child. Of a worker that a zygote forks nothing is known before it is there."""
        try:
            if spawn.token in self._children or spawn.token in self.forks.tokens():
                raise OSError(f"there is a {spawn.token} already")
            if spawn.host:
                self._announce(_new_member(spawn, self._children.get(spawn.host)))
                return
            shared = self._shared_descriptors(spawn)
            zygote = self._children.get(spawn.zygote)
            fds = zygote.descriptors if zygote is not None and zygote.exited is None else ()
            if spawn.zygote and self.forks.start(spawn, fds, self._lifeline, shared):
                return
            child = start_child(spawn, self._lifeline, shared)
        except OSError as error:
            self._send(SpawnFailed(spawn.token, error.strerror or str(error)), ())
            return
        self._oom_scores[spawn.token] = spawn.oom_score_adj
        self._add(child)
        failpoint("keeper.spawned")

    def signal(self, request: SignalChild) -> None:
        if request.token in self.forks.tokens():
            self.forks.cancel(request.token)
            return
        child = self._children.get(request.token)
        if child is None or child.exited is not None or request.signal not in signal.valid_signals():
            return  # it exited meanwhile; the controller gets ChildExited
        if request.whole_session:
            process_tree.signal_session(child.message.pid, request.signal)
        else:
            signal.pidfd_send_signal(child.pidfd, request.signal)
        failpoint("keeper.signalled")

    def forget(self, token: str) -> None:
        """Close what is held of an exited child: the controller has recorded the exit."""
        child = self._children.get(token)
        if child is not None and (child.exited is not None or child.is_member):
            del self._children[token]
            child.close()
            failpoint("keeper.forgotten")

    def token_of(self, pid: int) -> str | None:
        for token, child in self._children.items():
            if child.message.pid == pid and child.exited is None and not child.is_member:
                return token
        return None

    def record_exit(self, exited: ChildExited) -> None:
        """Report an exit, and kill what the child left behind. Called before the child is reaped."""
        child = self._children[exited.token]
        self._check_exec(child)
        child.exited = exited
        self.forks.on_zygote_exit(exited.token)
        if exited.token in self._children:
            self._send(exited, ())
        for member in _members_of(self._children, exited.pid):
            member.exited = replace(exited, token=member.message.token)
            self._send(member.exited, ())
        failpoint("keeper.exit_told")
        # All its descendants are in its control group. Without one they are found by session, which takes a scan of
        # /proc: its cost grows with the number of processes on the machine.
        if child.procs_files:
            self.dying_groups.kill(child.procs_files)
        else:
            process_tree.end_session(exited.pid)
        # A process may have left its session, and as root also its group. It is a child of ours by now.
        self.orphans.on_worker_exit()

    def kill_all(self) -> None:
        for child in self._children.values():
            if child.exited is None:
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def records(self) -> tuple[Child, ...]:
        """All children, for the next program of this process."""
        return tuple(self._children.values())

    def restore(self, children: Iterable[Child]) -> None:
        """Take over the children of the previous program of this process."""
        for child in children:
            self._add(child)

    def _add(self, child: Child) -> None:
        self._children[child.message.token] = child
        if child.exec_status is not None:
            self._selector.register(child.exec_status, selectors.EVENT_READ, lambda: self._check_exec(child))

    def _announce(self, child: Child) -> None:
        self._children[child.message.token] = child
        self._send(child.message, child.descriptors[:ANNOUNCED])
        child.is_announced = True
        failpoint("keeper.introduced")

    def _check_exec(self, child: Child) -> None:
        """Announce the child once its program runs; SpawnFailed if the exec has failed."""
        if child.exec_status is None:
            return  # its exit was handled in the same iteration of the loop
        text = exec_error(child.exec_status)
        if text is None:
            return
        self._selector.unregister(child.exec_status)
        child.close_exec_status()
        if not text:
            # The child could not before its exec: until then its files in /proc belonged to root, as the keeper's do.
            score = self._oom_scores.pop(child.message.token, None)
            if score is not None:
                set_oom_score(score, child.message.pid)
            if not child.is_announced:
                self._announce(child)
            return
        self._oom_scores.pop(child.message.token, None)
        if not child.is_announced:  # else a new controller knows it already, and gets ChildExited
            del self._children[child.message.token]
            child.close()
            self._send(SpawnFailed(child.message.token, text), ())


def _new_member(spawn: Spawn, host: Child | None) -> Child:
    """OSError if its host has exited, or there is no room for more descriptors."""
    if host is None or host.exited is not None:
        raise OSError("the process of its group has ended")
    return Child(ChildDescriptors(spawn.token, host.message.pid, spawn.note), member_descriptors(host.pidfd), (), None)


def _members_of(children: Mapping[str, Child], pid: int) -> list[Child]:
    """Those that run in a process. The pid may have been that of an older one, whose members have all exited."""
    return [each for each in children.values() if each.message.pid == pid and each.is_member and each.exited is None]


def _living_workers(children: Mapping[str, Child], forking: Iterable[str]) -> list[str]:
    living = (token for token, child in children.items() if child.exited is None)
    found = [parse_token(token) for token in (*living, *forking)]
    return [
        worker_name(number, generation)
        for role, number, generation in filter(None, found)
        if role in ("worker", "host")
    ]


def start_child(spawn: Spawn, lifeline: int, shared: Mapping[str, int]) -> Child:
    """Start a child by exec, with new descriptors of its own and the `shared` ones; OSError if that fails."""
    with new_descriptors(spawn, lifeline, shared) as made:
        started = start(spawn, made.inherited, made.output)
        made.is_kept = True
    message = ChildDescriptors(spawn.token, started.pid, spawn.note)
    return Child(message, (started.pidfd, *made.kept), _own_groups(spawn), started.exec_status)


def _own_groups(spawn: Spawn) -> tuple[str, ...]:
    return tuple(each for each in spawn.procs_files if not is_idle_group(each))
