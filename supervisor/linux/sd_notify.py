"""What systemd is told: READY, STATUS, STOPPING, and that the keeper's own loop turns (WATCHDOG).

The variables are taken out of the environment, so that no child speaks in our name. Without systemd all of it is
nothing. A datagram that does not get through is lost: systemd will ask again by its watchdog.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import MutableMapping

from mmsup.ipc.failpoints import failpoint

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class SystemdNotifier:
    """The line to systemd, or to nobody."""

    def __init__(self, address: str, watchdog_s: float) -> None:
        self.address = "\0" + address[1:] if address.startswith("@") else address
        """Empty: nobody listens."""
        self.watchdog_s = watchdog_s
        """How often WATCHDOG=1 is due; 0 for never."""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str], pid: int) -> SystemdNotifier:
        """Read the variables and remove them. The watchdog is spoken to twice in each of its periods."""
        address, usec, watched = [environ.pop(name, "") for name in VARIABLES]
        meant = watched in ("", str(pid)) and usec.isdigit()
        return cls(address, int(usec) / 2e6 if meant else 0.0)

    def send(self, text: str) -> None:
        """Say one thing (`READY=1`) or several, a line each; never waits."""
        if not self.address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            sock.sendto(text.encode(errors="replace"), self.address)

    def store(self, name: str, fd: int) -> None:
        """Let the manager hold a descriptor, and hand it back under this name to who is started after us."""
        if not self.address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            sock.connect(self.address)  # send_fds of Python 3.11 forgets the address that it is given
            failpoint("keeper.store")
            socket.send_fds(sock, [f"FDSTORE=1\nFDNAME={name}".encode()], [fd])
