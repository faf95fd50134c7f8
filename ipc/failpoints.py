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
RANGE_BYTES: Final = 8192
SUBJECT_AT: Final = 8
SUBJECT_BYTES: Final = 128
HITS_AT: Final = 64
WORD_MAGIC, WORD_WHAT, WORD_ROLE, WORD_POINT, WORD_LEFT, WORD_FIRED, WORD_WAIT = range(7)
ROLES: Final = ("keeper", "brain", "gateway")
INHERITED: Final = "points"
"""The name of the descriptor among a child's arguments."""


class Order(enum.IntEnum):
    """What happens when the count is through."""

    OFF = 0
    RAISE = 1
    """OSError with the point's own number; a point without one is not counted."""
    DELAY = 2
    KILL = 3


class Point(NamedTuple):
    """One place. `error`: what the kernel may say to the call that follows; 0 if none follows that could fail."""

    error: int
    what: str
    roles: tuple[str, ...] = ()
    """Who comes by; for a point whose name begins with its role, that role."""


POINTS: Final[dict[str, Point]] = {
    # The keeper, from its start to its end.
    "keeper.lock": Point(errno.EMFILE, "about to open the lock of a directory"),
    "keeper.groups": Point(0, "the directories are ours, the control groups are not settled"),
    "keeper.listen": Point(errno.EADDRINUSE, "a socket is bound and does not listen"),
    "keeper.taken_back": Point(0, "a listener that the service manager held is ours again"),
    "keeper.given_up": Point(0, "one that is not wanted any more is shut, and not closed"),
    "keeper.listening": Point(0, "all listeners are there, no brain is"),
    "keeper.store": Point(errno.ENOBUFS, "about to let the service manager hold a listener"),
    "keeper.stored": Point(0, "the service manager holds what it shall"),
    "keeper.brain_channel": Point(errno.EMFILE, "about to make a brain's channel"),
    "keeper.brain_started": Point(0, "a brain was forked and not greeted"),
    "keeper.brain_greeted": Point(0, "a brain was told what there is"),
    "keeper.brain_died": Point(0, "a dead brain's last words were heard"),
    "keeper.child_channel": Point(errno.EMFILE, "about to make a child's channel"),
    "keeper.child_page": Point(errno.ENOMEM, "about to make a child's status page"),
    "keeper.child_pipes": Point(errno.EMFILE, "about to make a child's pipes"),
    "keeper.doubt": Point(errno.EMFILE, "about to make the pipe that tells whether a program runs"),
    "keeper.fork": Point(errno.EAGAIN, "about to fork"),
    "keeper.forked": Point(0, "there is a child that nothing holds"),
    "keeper.pidfd": Point(errno.EMFILE, "about to open a child's pidfd"),
    "keeper.child_group": Point(errno.ENODEV, "in the child: about to enter its control groups"),
    "keeper.child_exec": Point(errno.ENOMEM, "in the child: about to become its program"),
    "keeper.spawned": Point(0, "a child was forked, and its brain does not know"),
    "keeper.introduced": Point(0, "the brain was told of a child"),
    "keeper.exit_told": Point(0, "the brain was told of a death, and the dead is not reaped"),
    "keeper.reaped": Point(0, "somebody was reaped"),
    "keeper.signalled": Point(0, "a child was signalled"),
    "keeper.forgotten": Point(0, "a dead child's descriptors are closed"),
    "keeper.remembered": Point(0, "a brain's memory was taken in"),
    "keeper.estate": Point(errno.ENOMEM, "about to write down what is held, for another program"),
    "keeper.estate_seal": Point(errno.EPERM, "it is written down and could be written to"),
    "keeper.trial_pipe": Point(errno.EMFILE, "about to make the pipe that tells of a trial of the code on disk"),
    "keeper.trial_begun": Point(0, "the code on disk is tried in a child"),
    "keeper.trial_ended": Point(0, "what the trial came to is known to nobody else"),
    "keeper.relieved": Point(0, "the brain was told to leave for another one"),
    "keeper.blocked": Point(0, "no brain is there, and signals are held back"),
    "keeper.exec": Point(errno.ENOMEM, "what is held is handed on: about to become the program on disk"),
    "keeper.renewed": Point(0, "it is that program, and has read what was handed on"),
    "keeper.taken_over": Point(0, "it holds all again, and no brain is there"),
    "keeper.stopping": Point(0, "the brain was told to end the server"),
    "keeper.finished": Point(0, "the brain has said that it is over"),
    "keeper.ended": Point(0, "nobody is left, the sockets are"),
    # The brain: what is on disk.
    "brain.folder_made": Point(errno.EIO, "a folder is made, its name is not on the disk"),
    "brain.file_open": Point(errno.ENOSPC, "about to make the new file beside the old one"),
    "brain.file_write": Point(errno.ENOSPC, "the new file is empty"),
    "brain.file_sync": Point(errno.EIO, "the new file is written and not on the disk"),
    "brain.file_rename": Point(errno.ENOSPC, "the new file is whole and has not its name"),
    "brain.file_renamed": Point(errno.EIO, "the new file has its name, its folder is not on the disk"),
    "brain.file_written": Point(0, "all of it is on the disk"),
    "brain.file_removed": Point(0, "the file's name is gone, its folder is not on the disk"),
    "brain.book": Point(errno.ENOSPC, "about to write a line of the journal or of a model's output"),
    # The brain: lives.
    "brain.wished": Point(0, "what a person asked for is written down and not begun"),
    "brain.scratch": Point(errno.ENOSPC, "about to make the folder of a life"),
    "brain.group": Point(errno.ENOSPC, "about to make the control group of a life"),
    "brain.spawn_said": Point(0, "the keeper was asked to start a worker"),
    "brain.adopted": Point(0, "a worker's descriptors are ours"),
    "brain.boot_said": Point(0, "a worker was told what to become"),
    "brain.ready": Point(0, "a worker has said that it serves, nobody routes to it"),
    "brain.pair": Point(errno.EMFILE, "about to make the pair between a gateway and a worker"),
    "brain.attached": Point(0, "a worker was told of a gateway, the gateway not of it"),
    "brain.linked": Point(0, "all gateways were told of a worker"),
    "brain.routed": Point(0, "the gateways were told how a model stands"),
    "brain.swapped": Point(0, "new content is linked, the old one not withdrawn"),
    "brain.retired": Point(0, "an edition was told to leave"),
    "brain.withdrawn": Point(0, "the gateways were told to route no more to a worker"),
    "brain.stop_said": Point(0, "a worker was told to stop"),
    "brain.condemned": Point(0, "the gateways were told that a worker is about to be killed"),
    "brain.kill_said": Point(0, "the keeper was asked to kill a worker"),
    "brain.ended": Point(0, "an exit was heard, and nothing done about it"),
    "brain.buried": Point(0, "the keeper was told to forget the dead, its group and folder are there"),
    # The brain: requests that ended workers.
    "brain.suspected": Point(0, "the gateways were told of a suspect, no later brain would know"),
    "brain.pardoned": Point(0, "the gateways were told to forget a list, a later brain would not"),
    # The brain: an upgrade.
    "brain.upgrade_noted": Point(0, "an upgrade is noted, and not begun"),
    "brain.trial_said": Point(0, "the keeper was asked to try the code on disk"),
    "brain.stepping_down": Point(0, "it is noted that the next brain goes on, and this one is there"),
    "brain.gateway_beside": Point(0, "a gateway comes up beside one, and no later brain would know whose it is"),
    "brain.gateway_replaced": Point(0, "another gateway has the place, the old one does not know"),
    "brain.gateway_retired": Point(0, "a gateway was told to leave"),
    "brain.beside": Point(0, "a twin of a worker is begun"),
    "brain.joined": Point(0, "a twin serves beside the old worker, which was not told to leave"),
    "brain.followed": Point(0, "a process was followed, and that is noted"),
    "brain.upgraded": Point(0, "it is noted that an upgrade is over, and whoever asked does not know"),
    # The brain: itself, and those it talks to.
    "brain.begun": Point(0, "all wanted models were begun"),
    "brain.restored": Point(0, "what an earlier brain left is read, no child has found its place"),
    "brain.readopted": Point(0, "what an earlier brain left is taken over"),
    "brain.remember": Point(0, "something changed that the next brain must know, and the keeper does not"),
    "brain.asked": Point(0, "a client's question was heard"),
    "brain.answer": Point(0, "about to answer a client's question"),
    "brain.gateway_said": Point(0, "the keeper was asked to start a gateway"),
    "brain.configured": Point(0, "a gateway was told what to be, and of no worker"),
    "brain.drain": Point(0, "about to tell the gateways to drain"),
    "brain.drained": Point(0, "the gateways have drained"),
    "brain.emptied": Point(0, "no worker is left"),
    "brain.finish": Point(0, "about to tell the keeper that it is over"),
    # A gateway.
    "gateway.configured": Point(0, "it was told what to be and does not listen"),
    "gateway.listening": Point(0, "it listens"),
    "gateway.linked": Point(0, "a worker can be reached"),
    "gateway.routed": Point(0, "it knows how a model stands"),
    "gateway.synced": Point(0, "it knows everything"),
    "gateway.unlinked": Point(0, "it routes no more to a worker"),
    "gateway.judged": Point(0, "it knows why a worker's life ended, or is about to"),
    "gateway.link_ended": Point(0, "everybody in a life that ended has been told"),
    "gateway.sent": Point(0, "a request was given to its link"),
    "gateway.replied": Point(0, "a reply was found in its ledger"),
    "gateway.inquest": Point(0, "it knows who was in the run that ended, the brain does not"),
    "gateway.listed": Point(0, "it has heard what the brain knows of suspects"),
    "gateway.granted": Point(0, "a larger result buffer was given"),
    "gateway.extent_send": Point(0, "about to send an extent to its worker"),
    "gateway.asked": Point(0, "a client's question went to the brain"),
    "gateway.answered": Point(0, "the brain's answer is here, its client does not know"),
    "gateway.retired": Point(0, "it serves those that are connected, and nobody else"),
    "gateway.left": Point(0, "it turns no more, its links are there"),
    "gateway.draining": Point(0, "it takes no new work"),
    "gateway.drained": Point(0, "its work is done, the brain does not know"),
    # What all share.
    "ipc.extent_file": Point(errno.EMFILE, "about to make an extent's file", ("gateway",)),
    "ipc.extent_fill": Point(errno.ENOSPC, "about to fill an extent with memory", ("gateway",)),
    "ipc.extent_map": Point(errno.ENOMEM, "about to map an extent", ("gateway",)),
    "ipc.send": Point(errno.ENOBUFS, "about to send a control message", ROLES),
    "ipc.send_rights": Point(errno.ETOOMANYREFS, "about to send one with descriptors", ("keeper", "brain")),
    "ipc.receive": Point(0, "about to look for a control message", ROLES),
    "ipc.receive_rights": Point(errno.EMFILE, "a control message came with descriptors", ("brain", "gateway")),
    "ipc.pair_send": Point(errno.ENOBUFS, "about to send a frame to a worker", ("gateway",)),
    "ipc.pair_receive": Point(0, "a frame of a worker's is here", ("gateway",)),
}
NAMES: Final = tuple(POINTS)
ANY_ROLE: Final = len(ROLES)
ANY_POINT: Final = len(NAMES)
assert (HITS_AT + len(ROLES) * len(NAMES)) * 8 <= RANGE_BYTES, "the range has no room for all points"


def faultpoint(name: str, subject: str = "") -> None:
    """Come by; OSError if a test wants one here. Off: 35 ns (Python 3.11, 2-core virtual machine)."""
    if _armed is not None:
        _armed.hit(name, subject)


def open_range(path: str) -> int:
    """A new descriptor of the range in this file. OSError or ValueError if there is none, or others could write it."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    found = os.fstat(fd)
    private = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    if private and found.st_size == RANGE_BYTES and os.pread(fd, 8, 0) == MAGIC.to_bytes(8, "little"):
        return fd
    os.close(fd)
    raise ValueError(f"{path}: not a private range of fault points")


def arm(inherited: Mapping[str, int], role: str) -> None:
    """From now on this process does what the range orders that it was born with, if it was."""
    global _armed  # noqa: PLW0603 - a point is a call from anywhere, and must cost nothing when there is no range
    if INHERITED in inherited:
        _armed = _Armed(inherited[INHERITED], ROLES.index(role))


def handed_on() -> dict[str, int]:
    """What a child that may be armed inherits: the range, if there is one."""
    return {INHERITED: _armed.fd} if _armed is not None else {}


class _Armed:
    """A process with a range."""

    def __init__(self, fd: int, role: int) -> None:
        self.fd = fd
        self._role = role
        self._words = memoryview(mmap.mmap(fd, RANGE_BYTES)).cast("Q")
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
        _obey(order, name, self._words[WORD_WAIT])

    def _count(self, point: int, subject: str) -> Order:
        words = self._words
        words[HITS_AT + self._role * len(NAMES) + point] += 1
        order = Order(words[WORD_WHAT])
        if order is Order.OFF or not self._is_meant(order, point, subject):
            return Order.OFF
        words[WORD_LEFT] -= 1
        if words[WORD_LEFT]:
            return Order.OFF
        words[WORD_WHAT] = Order.OFF
        words[WORD_FIRED] += 1
        return order

    def _is_meant(self, order: Order, point: int, subject: str) -> bool:
        words = self._words
        wanted = words[SUBJECT_AT : SUBJECT_AT + SUBJECT_BYTES // 8].tobytes().rstrip(b"\0").decode()
        return (
            words[WORD_ROLE] in (self._role, ANY_ROLE)
            and words[WORD_POINT] in (point, ANY_POINT)
            and (not wanted or not subject or wanted == subject)
            and (order is not Order.RAISE or POINTS[NAMES[point]].error != 0)
        )


def _obey(order: Order, name: str, wait_ms: int) -> None:
    match order:
        case Order.RAISE:
            error = POINTS[name].error
            raise OSError(error, os.strerror(error))
        case Order.DELAY:
            time.sleep(wait_ms / 1e3)
        case Order.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Order.OFF:
            pass


_armed: _Armed | None = None
