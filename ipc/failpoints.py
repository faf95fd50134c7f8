"""Failpoints: named places at which a test makes one of our processes raise, wait, or be killed.

    failpoint("brain.file_sync")              before or after something that changes state or takes a resource
    failpoint("gateway.sent", "bert")         the same, on behalf of one model

A process is armed by an inherited descriptor of the *control page*: a private file created by the test, with the action
to take and a hit counter for each failpoint. The keeper opens the file that its settings name, arms itself, and passes
the descriptor to controller and gateways, never to a worker. Nothing that comes from a client reaches it.

The control page, in words of 8 bytes:

    0            MAGIC
    1 action     a FailpointAction; set to OFF when it fires, so that a restarted process does not fire again
    2 role       index in ROLES; len(ROLES) means any
    3 point      index in POINTS; len(POINTS) means any
    4 hits left  fires when this many hits have been counted
    5 fired      how often it has fired
    6 wait_ms    of a delay
    8 ... 23     subject: a model name, padded with zeros; hits for another model are not counted. Empty: any
    64 ...       hits of each failpoint since the file was created, for each role

Standard library only: the keeper imports it.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import mmap
import os
import signal
import stat
import threading
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

MAGIC: Final = 0x73746E696F70  # "points"
CONTROL_PAGE_BYTES: Final = 8192
SUBJECT_AT: Final = 8
SUBJECT_BYTES: Final = 128
HITS_AT: Final = 64
WORD_MAGIC, WORD_ACTION, WORD_ROLE, WORD_POINT, WORD_HITS_LEFT, WORD_FIRED, WORD_WAIT = range(7)
ROLES: Final = ("keeper", "brain", "gateway")
INHERITED: Final = "points"
"""Name of the descriptor among the arguments of a child."""


class FailpointAction(enum.IntEnum):
    """What happens when the counted hit is reached."""

    OFF = 0
    RAISE = 1
    """OSError with the errno of the failpoint; one without an errno is not counted."""
    DELAY = 2
    KILL = 3


class Failpoint(NamedTuple):
    """`error`: an errno that the call after it may really give; 0 if no call follows that could fail."""

    error: int
    description: str
    roles: tuple[str, ...] = ()
    """Processes that pass it; empty: the role with which its name begins."""


POINTS: Final[dict[str, Failpoint]] = {
    # The keeper, from its start to its end.
    "keeper.lock": Failpoint(errno.EMFILE, "about to open the lock file of a directory"),
    "keeper.groups": Failpoint(0, "the directories are locked, the control groups are not set up"),
    "keeper.listen": Failpoint(errno.EADDRINUSE, "a socket is bound and does not listen"),
    "keeper.taken_back": Failpoint(0, "a listener stored in the service manager was taken back"),
    "keeper.given_up": Failpoint(0, "a listener that is no longer configured is shut down and not closed"),
    "keeper.listening": Failpoint(0, "all listeners exist, no controller is running"),
    "keeper.store": Failpoint(errno.ENOBUFS, "about to store a listener in the service manager"),
    "keeper.stored": Failpoint(0, "the service manager holds all listeners"),
    "keeper.brain_channel": Failpoint(errno.EMFILE, "about to create a controller's channel"),
    "keeper.brain_started": Failpoint(0, "a controller was forked and has received nothing"),
    "keeper.brain_greeted": Failpoint(0, "a controller has received the inventory"),
    "keeper.brain_died": Failpoint(0, "the last messages of a dead controller were received"),
    "keeper.child_channel": Failpoint(errno.EMFILE, "about to create a child's channel"),
    "keeper.child_page": Failpoint(errno.ENOMEM, "about to create a child's status page"),
    "keeper.child_pipes": Failpoint(errno.EMFILE, "about to create a child's pipes"),
    "keeper.member_channel": Failpoint(errno.EMFILE, "about to create the channel of a member of a group"),
    "keeper.member_page": Failpoint(errno.ENOMEM, "about to create the status page of a member of a group"),
    "keeper.doubt": Failpoint(errno.EMFILE, "about to create the pipe that reports whether exec succeeded"),
    "keeper.fork": Failpoint(errno.EAGAIN, "about to fork"),
    "keeper.forked": Failpoint(0, "a child is running and in no table"),
    "keeper.pidfd": Failpoint(errno.EMFILE, "about to open a child's pidfd"),
    "keeper.child_group": Failpoint(errno.ENODEV, "in the child: about to enter its control groups"),
    "keeper.child_exec": Failpoint(errno.ENOMEM, "in the child: about to exec"),
    "keeper.spawned": Failpoint(0, "a child was forked, the controller does not know of it"),
    "keeper.introduced": Failpoint(0, "the controller has received a child's descriptors"),
    "keeper.exit_told": Failpoint(0, "the controller was told of an exit, the child is not reaped"),
    "keeper.reaped": Failpoint(0, "a child was reaped"),
    "keeper.signalled": Failpoint(0, "a child was signalled"),
    "keeper.forgotten": Failpoint(0, "a dead child's descriptors are closed"),
    "keeper.remembered": Failpoint(0, "a checkpoint was received"),
    "keeper.estate": Failpoint(errno.ENOMEM, "about to write the state for a re-exec"),
    "keeper.estate_seal": Failpoint(errno.EPERM, "the state is written and not sealed"),
    "keeper.trial_pipe": Failpoint(errno.EMFILE, "about to create the pipe of a preflight run"),
    "keeper.trial_begun": Failpoint(0, "a preflight run of the code on disk was started"),
    "keeper.trial_ended": Failpoint(0, "only the keeper knows the result of the preflight run"),
    "keeper.relieved": Failpoint(0, "the controller was told to step down"),
    "keeper.blocked": Failpoint(0, "no controller is running, and signals are blocked"),
    "keeper.exec": Failpoint(errno.ENOMEM, "the state is written: about to exec the program on disk"),
    "keeper.renewed": Failpoint(0, "the new program has read the state"),
    "keeper.taken_over": Failpoint(0, "the new program holds all resources, no controller is running"),
    "keeper.stopping": Failpoint(0, "the controller was told to shut the server down"),
    "keeper.finished": Failpoint(0, "the controller has reported the end of the shutdown"),
    "keeper.ended": Failpoint(0, "no process is left, the sockets are"),
    # The controller: files on disk.
    "brain.folder_made": Failpoint(errno.EIO, "a directory is created, its name is not on disk"),
    "brain.file_open": Failpoint(errno.ENOSPC, "about to create the new file beside the old one"),
    "brain.file_write": Failpoint(errno.ENOSPC, "the new file is empty"),
    "brain.file_sync": Failpoint(errno.EIO, "the new file is written and not on disk"),
    "brain.file_rename": Failpoint(errno.ENOSPC, "the new file is complete and not renamed"),
    "brain.file_renamed": Failpoint(errno.EIO, "the new file is renamed, its directory is not on disk"),
    "brain.file_written": Failpoint(0, "the new file is on disk"),
    "brain.file_removed": Failpoint(0, "the file's name is removed, its directory is not on disk"),
    "brain.book": Failpoint(errno.ENOSPC, "about to write a line of the event log or of a model's output"),
    # The controller: workers.
    "brain.wished": Failpoint(0, "a command's desired state is on disk, nothing was done for it"),
    "brain.scratch": Failpoint(errno.ENOSPC, "about to create a worker's scratch directory"),
    "brain.group": Failpoint(errno.ENOSPC, "about to create a worker's control group"),
    "brain.spawn_said": Failpoint(0, "the keeper was told to start a worker"),
    "brain.adopted": Failpoint(0, "a worker's descriptors were received"),
    "brain.boot_said": Failpoint(0, "a worker was told what to load"),
    "brain.ready": Failpoint(0, "a worker is ready, no gateway routes to it"),
    "brain.pair": Failpoint(errno.EMFILE, "about to create the data channel between a gateway and a worker"),
    "brain.attached": Failpoint(0, "a worker was told of a gateway, the gateway not of it"),
    "brain.linked": Failpoint(0, "all gateways were told of a worker"),
    "brain.routed": Failpoint(0, "the gateways were told of a model's state"),
    "brain.swapped": Failpoint(0, "a new revision is linked, the old one not unlinked"),
    "brain.retired": Failpoint(0, "a revision was told to retire"),
    "brain.withdrawn": Failpoint(0, "the gateways were told to unlink a worker"),
    "brain.offloading": Failpoint(0, "a revision was told to move its models to host memory"),
    "brain.offloaded": Failpoint(0, "a worker's model is in host memory"),
    "brain.restoring": Failpoint(0, "a revision that was offloaded is active again, and was told nothing"),
    "brain.move_said": Failpoint(0, "a worker was told to move its model"),
    "brain.moved_back": Failpoint(0, "a worker's model is back, no gateway routes to it"),
    "brain.stop_said": Failpoint(0, "a worker was told to stop"),
    "brain.condemned": Failpoint(0, "the gateways were told that a worker is about to be killed"),
    "brain.kill_said": Failpoint(0, "the keeper was told to kill a worker"),
    "brain.ended": Failpoint(0, "an exit was received, and nothing done about it"),
    "brain.buried": Failpoint(0, "the keeper was told to forget a dead child, its control group and directory exist"),
    # The controller: co-location groups.
    "brain.host_scratch": Failpoint(errno.ENOSPC, "about to create the scratch directory of a group's process"),
    "brain.host_group": Failpoint(errno.ENOSPC, "about to create the control group of a group's process"),
    "brain.host_said": Failpoint(0, "the keeper was told to start the process of a group"),
    "brain.host_adopted": Failpoint(0, "a group's process runs and does not know what it is"),
    "brain.host_boot_said": Failpoint(0, "a group's process knows what it is, its members are not requested"),
    "brain.member_asked": Failpoint(0, "the keeper was told to make the descriptors of a member"),
    "brain.member_said": Failpoint(0, "a group's process was told of a member, and the member not what to load"),
    "brain.member_left": Failpoint(0, "a member has left its process, and nothing is done about it"),
    "brain.shared_end": Failpoint(0, "the other members know that their process is about to be killed"),
    "brain.host_stop_said": Failpoint(0, "a group's process without members was told to stop"),
    "brain.host_ended": Failpoint(0, "the exit of a group's process was received, and nothing done about it"),
    "brain.host_buried": Failpoint(0, "the keeper was told to forget a group's process, its control group exists"),
    # The controller: poison requests.
    "brain.suspected": Failpoint(0, "the gateways were told of a suspect that is in no checkpoint"),
    "brain.pardoned": Failpoint(0, "the gateways were told to clear a list that is still in the checkpoint"),
    # The controller: an upgrade.
    "brain.upgrade_noted": Failpoint(0, "an upgrade is in the checkpoint and not started"),
    "brain.trial_said": Failpoint(0, "the keeper was told to try the code on disk"),
    "brain.stepping_down": Failpoint(0, "the checkpoint says that the next controller continues, this one is running"),
    "brain.gateway_beside": Failpoint(0, "a second gateway of a seat starts and is in no checkpoint"),
    "brain.gateway_replaced": Failpoint(0, "another gateway has the seat, the old one does not know"),
    "brain.gateway_retired": Failpoint(0, "a gateway was told to retire"),
    "brain.beside": Failpoint(0, "a replacement of a worker was started"),
    "brain.joined": Failpoint(0, "a replacement serves beside the old worker, which was not told to stop"),
    "brain.followed": Failpoint(0, "a process was replaced, and that is in the checkpoint"),
    "brain.upgraded": Failpoint(0, "the checkpoint says that an upgrade is over, its client does not know"),
    # The controller: its own life, its clients and gateways.
    "brain.begun": Failpoint(0, "all desired models were started"),
    "brain.restored": Failpoint(0, "the checkpoint is read, no child is matched to it"),
    "brain.readopted": Failpoint(0, "everything in the checkpoint is taken over"),
    "brain.remember": Failpoint(0, "something changed that is not in the keeper's checkpoint"),
    "brain.asked": Failpoint(0, "a client's command was received"),
    "brain.answer": Failpoint(0, "about to answer a client's command"),
    "brain.gateway_said": Failpoint(0, "the keeper was told to start a gateway"),
    "brain.configured": Failpoint(0, "a gateway is configured and knows of no worker"),
    "brain.drain": Failpoint(0, "about to tell the gateways to drain"),
    "brain.drained": Failpoint(0, "the gateways have drained"),
    "brain.emptied": Failpoint(0, "no worker is left"),
    "brain.finish": Failpoint(0, "about to tell the keeper that the shutdown is over"),
    # A gateway.
    "gateway.configured": Failpoint(0, "it is configured and does not listen"),
    "gateway.listening": Failpoint(0, "it listens"),
    "gateway.linked": Failpoint(0, "a worker is linked"),
    "gateway.routed": Failpoint(0, "it knows the state of a model"),
    "gateway.synced": Failpoint(0, "it has received the complete state"),
    "gateway.unlinked": Failpoint(0, "a worker is unlinked"),
    "gateway.judged": Failpoint(0, "it knows why a worker exited, or is about to be killed"),
    "gateway.link_ended": Failpoint(0, "all requests on a closed link were settled"),
    "gateway.sent": Failpoint(0, "a request was given to its link"),
    "gateway.replied": Failpoint(0, "a reply was matched to its request"),
    "gateway.inquest": Failpoint(0, "it knows which requests a dead worker was executing, the controller does not"),
    "gateway.listed": Failpoint(0, "it has received poison entries from the controller"),
    "gateway.granted": Failpoint(0, "a larger output buffer was granted"),
    "gateway.extent_send": Failpoint(0, "about to send an extent to its worker"),
    "gateway.asked": Failpoint(0, "a client's command went to the controller"),
    "gateway.answered": Failpoint(0, "the controller's answer is here, the client does not know"),
    "gateway.retired": Failpoint(0, "it serves existing connections only"),
    "gateway.left": Failpoint(0, "its main loop has ended, its links exist"),
    "gateway.draining": Failpoint(0, "it accepts no new requests"),
    "gateway.drained": Failpoint(0, "its requests are finished, the controller does not know"),
    # Shared code.
    "ipc.extent_file": Failpoint(errno.EMFILE, "about to create an extent's file", ("gateway",)),
    "ipc.extent_fill": Failpoint(errno.ENOSPC, "about to allocate an extent's memory", ("gateway",)),
    "ipc.extent_map": Failpoint(errno.ENOMEM, "about to map an extent", ("gateway",)),
    "ipc.send": Failpoint(errno.ENOBUFS, "about to send a control message", ROLES),
    "ipc.send_rights": Failpoint(errno.ETOOMANYREFS, "about to send one with descriptors", ("keeper", "brain")),
    "ipc.receive": Failpoint(0, "about to receive a control message", ROLES),
    "ipc.receive_rights": Failpoint(errno.EMFILE, "a control message came with descriptors", ("brain", "gateway")),
    "ipc.pair_send": Failpoint(errno.ENOBUFS, "about to send a frame to a worker", ("gateway",)),
    "ipc.pair_receive": Failpoint(0, "a frame from a worker was received", ("gateway",)),
}
NAMES: Final = tuple(POINTS)
ANY_ROLE: Final = len(ROLES)
ANY_POINT: Final = len(NAMES)
assert (HITS_AT + len(ROLES) * len(NAMES)) * 8 <= CONTROL_PAGE_BYTES, "the control page has no room for all failpoints"


def failpoint(name: str, subject: str = "") -> None:
    """Count a hit; OSError if a test has requested one here.

    Not armed it costs a call of 35 ns (Python 3.11, 2-core virtual machine). Code that runs for every request therefore
    tests `failpoints.armed` first.
    """
    if _armed is not None:
        _armed.hit(name, subject)


def open_control_page(path: str) -> int:
    """A new descriptor of the file. OSError or ValueError if it is none, or other users could write it."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    found = os.fstat(fd)
    private = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    if private and found.st_size == CONTROL_PAGE_BYTES and os.pread(fd, 8, 0) == MAGIC.to_bytes(8, "little"):
        return fd
    os.close(fd)
    raise ValueError(f"{path}: not a private control page of failpoints")


def arm(inherited: Mapping[str, int], role: str) -> None:
    """Arm this process if it has inherited a control page."""
    global _armed, armed
    if INHERITED in inherited:
        _armed, armed = _ArmedFailpoints(inherited[INHERITED], ROLES.index(role)), True


def inherited_descriptors() -> dict[str, int]:
    """What a child that may be armed inherits: the control page, if there is one."""
    return {INHERITED: _armed.fd} if _armed is not None else {}


class _ArmedFailpoints:
    """The control page, as this process uses it."""

    def __init__(self, fd: int, role: int) -> None:
        self.fd = fd
        self._role = role
        self._words = memoryview(mmap.mmap(fd, CONTROL_PAGE_BYTES)).cast("Q")
        self._threads = threading.Lock()

    def hit(self, name: str, subject: str) -> None:
        # Several processes count here. The lock belongs to the process, so the kernel releases it when it is killed.
        with self._threads:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                action = self._count(NAMES.index(name), subject)
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)
        if action is FailpointAction.RAISE:
            error = POINTS[name].error
            raise OSError(error, os.strerror(error))
        if action is FailpointAction.DELAY:
            time.sleep(self._words[WORD_WAIT] / 1e3)
        elif action is FailpointAction.KILL:
            os.kill(os.getpid(), signal.SIGKILL)

    def _count(self, point: int, subject: str) -> FailpointAction:
        words = self._words
        words[HITS_AT + self._role * len(NAMES) + point] += 1
        action = FailpointAction(words[WORD_ACTION])
        if action is FailpointAction.OFF or not self._matches(action, point, subject):
            return FailpointAction.OFF
        words[WORD_HITS_LEFT] -= 1
        if words[WORD_HITS_LEFT]:
            return FailpointAction.OFF
        words[WORD_ACTION] = FailpointAction.OFF
        words[WORD_FIRED] += 1
        return action

    def _matches(self, action: FailpointAction, point: int, subject: str) -> bool:
        words = self._words
        subject_filter = words[SUBJECT_AT : SUBJECT_AT + SUBJECT_BYTES // 8].tobytes().rstrip(b"\0").decode()
        return (
            words[WORD_ROLE] in (self._role, ANY_ROLE)
            and words[WORD_POINT] in (point, ANY_POINT)
            and (not subject_filter or not subject or subject_filter == subject)
            and (action is not FailpointAction.RAISE or POINTS[NAMES[point]].error != 0)
        )


_armed: _ArmedFailpoints | None = None
armed = False
"""Whether `failpoint` does anything in this process; changed by `arm` only."""
