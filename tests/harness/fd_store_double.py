"""A double of systemd's file descriptor store: keeps the descriptors of one keeper and passes them to the next."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Sequence

from mmsup.ipc.transport.control_channel import close_fds

STALE = "stale"
"""A listener that no setting names; the keeper must close it."""
HAND = """
import fcntl, os, sys
names, *rest = sys.argv[1:]
count = len(names.split(":"))
moved = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in rest[:count]]
for place, fd in enumerate(moved):
    os.dup2(fd, 3 + place)
    os.close(fd)
given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}
os.execvpe(rest[count], rest[count:], {**os.environ, **given})
"""


class FdStoreDouble:
    """The store, with listeners of an earlier keeper in it, until `close`."""

    def __init__(self, *names: str) -> None:
        self._kept = {name: socket.create_server(("127.0.0.1", 0)) for name in (*names, STALE)}

    def receive(self, lines: Sequence[str], descriptors: Sequence[int]) -> None:
        """Process one sd_notify datagram of the keeper."""
        names = [line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")]
        if "FDSTORE=1" not in lines or len(names) != len(descriptors):
            close_fds(descriptors)
            return
        for name, fd in zip(names, descriptors, strict=True):
            self._drop(name)
            self._kept[name] = socket.socket(fileno=fd)

    def handing_back(self) -> tuple[list[str], list[int]]:
        """The command prefix that passes all descriptors as LISTEN_FDS, and the descriptors to inherit."""
        # As the manager does, what has hung up is dropped.
        for name in [name for name, sock in self._kept.items() if not _listens(sock)]:
            self._drop(name)
        descriptors = [sock.fileno() for sock in self._kept.values()]
        words = [":".join(self._kept), *map(str, descriptors)]
        return ([sys.executable, "-ISc", HAND, *words], descriptors) if descriptors else ([], [])

    @property
    def has_stale(self) -> bool:
        """Whether the stale listener is still open."""
        return STALE in self._kept and _listens(self._kept[STALE])

    def close(self) -> None:
        """Drop all descriptors, as systemd does when the service is stopped."""
        for name in list(self._kept):
            self._drop(name)

    def _drop(self, name: str) -> None:
        with contextlib.suppress(KeyError):
            self._kept.pop(name).close()


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
