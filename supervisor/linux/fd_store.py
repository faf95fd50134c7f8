"""systemd's file descriptor store: listening sockets that systemd holds while the service restarts.

When the keeper is killed, its listeners stay open: clients wait in the socket's queue for the next keeper, and none is
refused. systemd closes them when the service is stopped or has failed. The unit preserves the files of UNIX sockets
(RuntimeDirectoryPreserve); a socket whose file is gone, or belongs to another process, is useless.

Sockets from the store are identified by name only; keeper/listeners.py checks whether it can use them.
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
    """The sockets of the previous keeper, by name. Removes the environment variables."""
    receiver, count, names = [environ.pop(name, "") for name in VARIABLES]
    if receiver != str(pid) or not count.isdecimal():
        return {}
    found: dict[str, socket.socket] = {}
    for fd, name in zip(range(FIRST_FD, FIRST_FD + int(count)), names.split(":"), strict=False):
        with contextlib.suppress(OSError):  # no socket, so not ours
            found[name] = socket.socket(fileno=fd)
    return found


def is_listening_on(sock: socket.socket, family: int, address: Sequence[object]) -> bool:
    """Whether the socket listens on this address. Port 0 matches any port."""
    with contextlib.suppress(OSError):
        if not _listens(sock, family):
            return False
        host, port = sock.getsockname()[:2]
        return host == address[0] and address[1] in (0, port)
    return False


def is_listening_at(sock: socket.socket, path: str) -> bool:
    """Whether it listens behind this file of a UNIX socket. The test leaves a closed connection in its queue."""
    with contextlib.suppress(OSError):
        if not _listens(sock, socket.AF_UNIX) or sock.getsockname() != path:
            return False
        return is_listener(path, listener_pid(sock))
    return False


def _listens(sock: socket.socket, family: int) -> bool:
    return sock.family == family and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def discard(sock: socket.socket) -> None:
    """Stop listening, though systemd holds the socket too: that frees the address, and systemd drops closed sockets."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    failpoint("keeper.given_up")
    sock.close()
