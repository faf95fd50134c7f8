"""Listening sockets that the service manager holds while no keeper lives: its file descriptor store.

A keeper that is killed, or killed for hanging, closes nothing then: who connects waits in the socket's queue for the
next keeper, and is not refused. The manager drops the store when the service is stopped or has failed for good.
The file of a UNIX socket is kept by the unit (RuntimeDirectoryPreserve); where it is gone, or another's, the socket is
of no use.

What is handed back is believed to be ours by its name only; whether it is of use is for listeners.py to see.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import MutableMapping, Sequence
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.supervisor.linux.unix_socket import is_listener, listener_pid

VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
FIRST_FD: Final = 3


def stored_sockets(environ: MutableMapping[str, str], pid: int) -> dict[str, socket.socket]:
    """What a former keeper gave into the store, by name; the variables are gone afterwards."""
    meant, count, names = [environ.pop(name, "") for name in VARIABLES]
    if meant != str(pid) or not count.isdecimal():
        return {}
    found: dict[str, socket.socket] = {}
    for fd, name in zip(range(FIRST_FD, FIRST_FD + int(count)), names.split(":"), strict=False):
        with contextlib.suppress(OSError):  # no socket at all: none of ours
            found[name] = socket.socket(fileno=fd)
    return found


def is_listening_on(sock: socket.socket, family: int, address: Sequence[object]) -> bool:
    """Whether the socket is what would be bound there now. Port 0 is any."""
    with contextlib.suppress(OSError):
        if not _listens(sock, family):
            return False
        host, port = sock.getsockname()[:2]
        return host == address[0] and address[1] in (0, port)
    return False


def is_listening_at(sock: socket.socket, path: str) -> bool:
    """The same for the file of a UNIX socket. Asking leaves a connection that is closed already."""
    with contextlib.suppress(OSError):
        if not _listens(sock, socket.AF_UNIX) or sock.getsockname() != path:
            return False
        return is_listener(path, listener_pid(sock))
    return False


def _listens(sock: socket.socket, family: int) -> bool:
    return sock.family == family and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def discard(sock: socket.socket) -> None:
    """Listen on it no more, whoever else holds it: the address is free, and the manager drops what has hung up."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    failpoint("keeper.given_up")
    sock.close()
