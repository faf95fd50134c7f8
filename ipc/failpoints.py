"""Places at which a test makes a process of ours fail: it raises, waits, or is gone. Off, each costs a call.

    faultpoint("brain.file_sync")             before or after something that changes a state or takes a resource
    faultpoint("gateway.sent", "bert")        the same, on behalf of one model

A process is armed by an inherited descriptor of a *range*: a private file, which whoever runs the test has made, with
the order in it and a counter for each point. The keeper opens the file that its settings name, arms itself, and hands
the descriptor to brain and gateways, never to a worker. Nothing that comes from a client reaches it.

The range, in words of 8 bytes:

    0          MAGIC
    1 what     an Order; whoever fires sets it to OFF, so that a successor does not fire again
    2 role     in which of ROLES; ROLES.__len__ is any
    3 point    which of POINTS; their number is any
    4 left     fires when so many hits have been counted
    5 fired    how often it has fired
    6 wait_ms  of a delay
    8 … 23     subject: the model, padded with zeros; a hit on behalf of another is not counted. Empty: any
    64 …       hits of each point since the file was made, for each role

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
"""The name of the descriptor among a child's arguments."""


class FailpointAction(enum.IntEnum):
    """What happens when the count is through."""

    OFF = 0
    RAISE = 1
    """OSError with the point's own number; a point without one is not counted."""
    DELAY = 2
    KILL = 3


class Failpoint(NamedTuple):
    """One place. `error`: what the kernel may say to the call that follows; 0 if none follows that could fail."""

    error: int
    description: str
    roles: tuple[str, ...] = ()
    """Who comes by; for a point whose name begins with its role, that role."""


POINTS: Final[dict[str, Failpoint]] = {
    # The keeper, from its start to its end.
    "keeper.lock": Failpoint(errno.EMFILE, "about to open the lock of a directory"),
    "keeper.groups": Failpoint(0, "the directories are ours, the control groups are not settled"),
    "keeper.listen": Failpoint(errno.EADDRINUSE, "a socket is bound and does not listen"),
    "keeper.taken_back": Failpoint(0, "a listener that the service manager held is ours again"),
    "keeper.given_up": Failpoint(0, "one that is not wanted any more is shut, and not closed"),
    "keeper.listening": Failpoint(0, "all listeners are there, no brain is"),
    "keeper.store": Failpoint(errno.ENOBUFS, "about to let the service manager hold a listener"),
    "keeper.stored": Failpoint(0, "the service manager holds what it shall"),
    "keeper.brain_channel": Failpoint(errno.EMFILE, "about to make a brain's channel"),
    "keeper.brain_started": Failpoint(0, "a brain was forked and not greeted"),
    "keeper.brain_greeted": Failpoint(0, "a brain was told what there is"),
    "keeper.brain_died": Failpoint(0, "a dead brain's last words were heard"),
    "keeper.child_channel": Failpoint(errno.EMFILE, "about to make a child's channel"),
    "keeper.child_page": Failpoint(errno.ENOMEM, "about to make a child's status page"),
    "keeper.child_pipes": Failpoint(errno.EMFILE, "about to make a child's pipes"),
    "keeper.doubt": Failpoint(errno.EMFILE, "about to make the pipe that tells whether a program runs"),
    "keeper.fork": Failpoint(errno.EAGAIN, "about to fork"),
    "keeper.forked": Failpoint(0, "there is a child that nothing holds"),
    "keeper.pidfd": Failpoint(errno.EMFILE, "about to open a child's pidfd"),
    "keeper.child_group": Failpoint(errno.ENODEV, "in the child: about to enter its control groups"),
    "keeper.child_exec": Failpoint(errno.ENOMEM, "in the child: about to become its program"),
    "keeper.spawned": Failpoint(0, "a child was forked, and its brain does not know"),
    "keeper.introduced": Failpoint(0, "the brain was told of a child"),
    "keeper.exit_told": Failpoint(0, "the brain was told of a death, and the dead is not reaped"),
    "keeper.reaped": Failpoint(0, "somebody was reaped"),
    "keeper.signalled": Failpoint(0, "a child was signalled"),
    "keeper.forgotten": Failpoint(0, "a dead child's descriptors are closed"),
    "keeper.remembered": Failpoint(0, "a brain's memory was taken in"),
    "keeper.estate": Failpoint(errno.ENOMEM, "about to write down what is held, for another program"),
    "keeper.estate_seal": Failpoint(errno.EPERM, "it is written down and could be written to"),
    "keeper.trial_pipe": Failpoint(errno.EMFILE, "about to make the pipe that tells of a trial of the code on disk"),
    "keeper.trial_begun": Failpoint(0, "the code on disk is tried in a child"),
    "keeper.trial_ended": Failpoint(0, "what the trial came to is known to nobody else"),
    "keeper.relieved": Failpoint(0, "the brain was told to leave for another one"),
    "keeper.blocked": Failpoint(0, "no brain is there, and signals are held back"),
    "keeper.exec": Failpoint(errno.ENOMEM, "what is held is handed on: about to become the program on disk"),
    "keeper.renewed": Failpoint(0, "it is that program, and has read what was handed on"),
    "keeper.taken_over": Failpoint(0, "it holds all again, and no brain is there"),
    "keeper.stopping": Failpoint(0, "the brain was told to end the server"),
    "keeper.finished": Failpoint(0, "the brain has said that it is over"),
    "keeper.ended": Failpoint(0, "nobody is left, the sockets are"),
    # The brain: what is on disk.
    "brain.folder_made": Failpoint(errno.EIO, "a folder is made, its name is not on the disk"),
    "brain.file_open": Failpoint(errno.ENOSPC, "about to make the new file beside the old one"),
    "brain.file_write": Failpoint(errno.ENOSPC, "the new file is empty"),
    "brain.file_sync": Failpoint(errno.EIO, "the new file is written and not on the disk"),
    "brain.file_rename": Failpoint(errno.ENOSPC, "the new file is whole and has not its name"),
    "brain.file_renamed": Failpoint(errno.EIO, "the new file has its name, its folder is not on the disk"),
    "brain.file_written": Failpoint(0, "all of it is on the disk"),
    "brain.file_removed": Failpoint(0, "the file's name is gone, its folder is not on the disk"),
    "brain.book": Failpoint(errno.ENOSPC, "about to write a line of the journal or of a model's output"),
    # The brain: lives.
    "brain.wished": Failpoint(0, "what a person asked for is written down and not begun"),
    "brain.scratch": Failpoint(errno.ENOSPC, "about to make the folder of a life"),
    "brain.group": Failpoint(errno.ENOSPC, "about to make the control group of a life"),
    "brain.spawn_said": Failpoint(0, "the keeper was asked to start a worker"),
    "brain.adopted": Failpoint(0, "a worker's descriptors are ours"),
    "brain.boot_said": Failpoint(0, "a worker was told what to become"),
    "brain.ready": Failpoint(0, "a worker has said that it serves, nobody routes to it"),
    "brain.pair": Failpoint(errno.EMFILE, "about to make the pair between a gateway and a worker"),
    "brain.attached": Failpoint(0, "a worker was told of a gateway, the gateway not of it"),
    "brain.linked": Failpoint(0, "all gateways were told of a worker"),
    "brain.routed": Failpoint(0, "the gateways were told how a model stands"),
    "brain.swapped": Failpoint(0, "new content is linked, the old one not withdrawn"),
    "brain.retired": Failpoint(0, "an edition was told to leave"),
    "brain.withdrawn": Failpoint(0, "the gateways were told to route no more to a worker"),
    "brain.stop_said": Failpoint(0, "a worker was told to stop"),
    "brain.condemned": Failpoint(0, "the gateways were told that a worker is about to be killed"),
    "brain.kill_said": Failpoint(0, "the keeper was asked to kill a worker"),
    "brain.ended": Failpoint(0, "an exit was heard, and nothing done about it"),
    "brain.buried": Failpoint(0, "the keeper was told to forget the dead, its group and folder are there"),
    # The brain: requests that ended workers.
    "brain.suspected": Failpoint(0, "the gateways were told of a suspect, no later brain would know"),
    "brain.pardoned": Failpoint(0, "the gateways were told to forget a list, a later brain would not"),
    # The brain: an upgrade.
    "brain.upgrade_noted": Failpoint(0, "an upgrade is noted, and not begun"),
    "brain.trial_said": Failpoint(0, "the keeper was asked to try the code on disk"),
    "brain.stepping_down": Failpoint(0, "it is noted that the next brain goes on, and this one is there"),
    "brain.gateway_beside": Failpoint(0, "a gateway comes up beside one, and no later brain would know whose it is"),
    "brain.gateway_replaced": Failpoint(0, "another gateway has the place, the old one does not know"),
    "brain.gateway_retired": Failpoint(0, "a gateway was told to leave"),
    "brain.beside": Failpoint(0, "a twin of a worker is begun"),
    "brain.joined": Failpoint(0, "a twin serves beside the old worker, which was not told to leave"),
    "brain.followed": Failpoint(0, "a process was followed, and that is noted"),
    "brain.upgraded": Failpoint(0, "it is noted that an upgrade is over, and whoever asked does not know"),
    # The brain: itself, and those it talks to.
    "brain.begun": Failpoint(0, "all wanted models were begun"),
    "brain.restored": Failpoint(0, "what an earlier brain left is read, no child has found its place"),
    "brain.readopted": Failpoint(0, "what an earlier brain left is taken over"),
    "brain.remember": Failpoint(0, "something changed that the next brain must know, and the keeper does not"),
    "brain.asked": Failpoint(0, "a client's question was heard"),
    "brain.answer": Failpoint(0, "about to answer a client's question"),
    "brain.gateway_said": Failpoint(0, "the keeper was asked to start a gateway"),
    "brain.configured": Failpoint(0, "a gateway was told what to be, and of no worker"),
    "brain.drain": Failpoint(0, "about to tell the gateways to drain"),
    "brain.drained": Failpoint(0, "the gateways have drained"),
    "brain.emptied": Failpoint(0, "no worker is left"),
    "brain.finish": Failpoint(0, "about to tell the keeper that it is over"),
    # A gateway.
    "gateway.configured": Failpoint(0, "it was told what to be and does not listen"),
    "gateway.listening": Failpoint(0, "it listens"),
    "gateway.linked": Failpoint(0, "a worker can be reached"),
    "gateway.routed": Failpoint(0, "it knows how a model stands"),
    "gateway.synced": Failpoint(0, "it knows everything"),
    "gateway.unlinked": Failpoint(0, "it routes no more to a worker"),
    "gateway.judged": Failpoint(0, "it knows why a worker's life ended, or is about to"),
    "gateway.link_ended": Failpoint(0, "everybody in a life that ended has been told"),
    "gateway.sent": Failpoint(0, "a request was given to its link"),
    "gateway.replied": Failpoint(0, "a reply was found in its ledger"),
    "gateway.inquest": Failpoint(0, "it knows who was in the run that ended, the brain does not"),
    "gateway.listed": Failpoint(0, "it has heard what the brain knows of suspects"),
    "gateway.granted": Failpoint(0, "a larger result buffer was given"),
    "gateway.extent_send": Failpoint(0, "about to send an extent to its worker"),
    "gateway.asked": Failpoint(0, "a client's question went to the brain"),
    "gateway.answered": Failpoint(0, "the brain's answer is here, its client does not know"),
    "gateway.retired": Failpoint(0, "it serves those that are connected, and nobody else"),
    "gateway.left": Failpoint(0, "it turns no more, its links are there"),
    "gateway.draining": Failpoint(0, "it takes no new work"),
    "gateway.drained": Failpoint(0, "its work is done, the brain does not know"),
    # What all share.
    "ipc.extent_file": Failpoint(errno.EMFILE, "about to make an extent's file", ("gateway",)),
    "ipc.extent_fill": Failpoint(errno.ENOSPC, "about to fill an extent with memory", ("gateway",)),
    "ipc.extent_map": Failpoint(errno.ENOMEM, "about to map an extent", ("gateway",)),
    "ipc.send": Failpoint(errno.ENOBUFS, "about to send a control message", ROLES),
    "ipc.send_rights": Failpoint(errno.ETOOMANYREFS, "about to send one with descriptors", ("keeper", "brain")),
    "ipc.receive": Failpoint(0, "about to look for a control message", ROLES),
    "ipc.receive_rights": Failpoint(errno.EMFILE, "a control message came with descriptors", ("brain", "gateway")),
    "ipc.pair_send": Failpoint(errno.ENOBUFS, "about to send a frame to a worker", ("gateway",)),
    "ipc.pair_receive": Failpoint(0, "a frame of a worker's is here", ("gateway",)),
}
NAMES: Final = tuple(POINTS)
ANY_ROLE: Final = len(ROLES)
ANY_POINT: Final = len(NAMES)
assert (HITS_AT + len(ROLES) * len(NAMES)) * 8 <= CONTROL_PAGE_BYTES, "the range has no room for all points"


def failpoint(name: str, subject: str = "") -> None:
    """Come by; OSError if a test wants one here. Off: 35 ns (Python 3.11, 2-core virtual machine)."""
    if _armed is not None:
        _armed.hit(name, subject)


def open_control_page(path: str) -> int:
    """A new descriptor of the range in this file. OSError or ValueError if there is none, or others could write it."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    found = os.fstat(fd)
    private = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    if private and found.st_size == CONTROL_PAGE_BYTES and os.pread(fd, 8, 0) == MAGIC.to_bytes(8, "little"):
        return fd
    os.close(fd)
    raise ValueError(f"{path}: not a private range of fault points")


def arm(inherited: Mapping[str, int], role: str) -> None:
    """From now on this process does what the range orders that it was born with, if it was."""
    global _armed  # noqa: PLW0603 - a point is a call from anywhere, and must cost nothing when there is no range
    if INHERITED in inherited:
        _armed = _ArmedFailpoints(inherited[INHERITED], ROLES.index(role))


def inherited_descriptors() -> dict[str, int]:
    """What a child that may be armed inherits: the range, if there is one."""
    return {INHERITED: _armed.fd} if _armed is not None else {}


class _ArmedFailpoints:
    """A process with a range."""

    def __init__(self, fd: int, role: int) -> None:
        self.fd = fd
        self._role = role
        self._words = memoryview(mmap.mmap(fd, CONTROL_PAGE_BYTES)).cast("Q")
        self._threads = threading.Lock()

    def hit(self, name: str, subject: str) -> None:
        """Count, and fire if it is this one."""
        # Several processes count here: the lock is the kernel's, by process, and ends with the one that is killed.
        with self._threads:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                order = self._count(NAMES.index(name), subject)
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)
        _perform(order, name, self._words[WORD_WAIT])

    def _count(self, point: int, subject: str) -> FailpointAction:
        words = self._words
        words[HITS_AT + self._role * len(NAMES) + point] += 1
        order = FailpointAction(words[WORD_ACTION])
        if order is FailpointAction.OFF or not self._matches(order, point, subject):
            return FailpointAction.OFF
        words[WORD_HITS_LEFT] -= 1
        if words[WORD_HITS_LEFT]:
            return FailpointAction.OFF
        words[WORD_ACTION] = FailpointAction.OFF
        words[WORD_FIRED] += 1
        return order

    def _matches(self, order: FailpointAction, point: int, subject: str) -> bool:
        words = self._words
        wanted = words[SUBJECT_AT : SUBJECT_AT + SUBJECT_BYTES // 8].tobytes().rstrip(b"\0").decode()
        return (
            words[WORD_ROLE] in (self._role, ANY_ROLE)
            and words[WORD_POINT] in (point, ANY_POINT)
            and (not wanted or not subject or wanted == subject)
            and (order is not FailpointAction.RAISE or POINTS[NAMES[point]].error != 0)
        )


def _perform(order: FailpointAction, name: str, wait_ms: int) -> None:
    match order:
        case FailpointAction.RAISE:
            error = POINTS[name].error
            raise OSError(error, os.strerror(error))
        case FailpointAction.DELAY:
            time.sleep(wait_ms / 1e3)
        case FailpointAction.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case FailpointAction.OFF:
            pass


_armed: _ArmedFailpoints | None = None
