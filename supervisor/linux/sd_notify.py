"""Client of systemd's notify socket (sd_notify): READY, STATUS, STOPPING, the watchdog, the descriptor store.

The environment variables are removed when they are read, so that no child can send in the keeper's name. Without
systemd everything here does nothing. A datagram that cannot be delivered is lost; the watchdog's pings are repeated.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import MutableMapping

from mmsup.ipc.failpoints import failpoint

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class SystemdNotifier:
    """Sends to systemd, or nowhere if its address is empty."""

    def __init__(self, address: str, watchdog_s: float) -> None:
        self.address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s
        """Interval of the watchdog's pings; 0 for none."""
        self.ping_due_s = 0.0 if watchdog_s else float("inf")

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str], pid: int) -> SystemdNotifier:
        """Read the variables and remove them. Two pings are sent in each period of the watchdog."""
        address, usec, watched_pid = [environ.pop(name, "") for name in VARIABLES]
        is_ours = watched_pid in ("", str(pid)) and usec.isdigit()
        return cls(address, int(usec) / 2e6 if is_ours else 0.0)

    def ping(self, now_s: float) -> None:
        if now_s >= self.ping_due_s:
            self.send("WATCHDOG=1")
            self.ping_due_s = now_s + self.watchdog_s

    def send(self, text: str) -> None:
        """Send one assignment (`READY=1`) or several, a line each; never blocks."""
        if not self.address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            sock.sendto(text.encode(errors="replace"), self.address)

    def store(self, name: str, fd: int) -> None:
        """Add a descriptor to systemd's store, which passes it under this name to the next keeper."""
        if not self.address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            sock.connect(self.address)  # send_fds of Python 3.11 ignores the address that it is given
            failpoint("keeper.store")
            socket.send_fds(sock, [f"FDSTORE=1\nFDNAME={name}".encode()], [fd])
