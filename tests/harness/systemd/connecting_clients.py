"""Clients that keep opening connections to a service in a sandbox, to count refused ones while it restarts."""

from __future__ import annotations

import threading

from harness.server import eventually
from harness.systemd.service import SystemdService

PAUSE_S = 0.002
"""Between two connections of a client: without one they take both cores from what restarts."""


class ConnectingClients:
    """Clients that connect again and again, and count who was refused."""

    def __init__(self, service: SystemdService) -> None:
        self.refused: list[str] = []
        self.connected = 0
        self._sandbox = service.systemd.sandbox
        self._address = service.address()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._connect_repeatedly) for _ in range(4)]

    def __enter__(self) -> ConnectingClients:
        for each in self._threads:
            each.start()
        self.await_more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(60)

    def await_more(self, count: int) -> None:
        """Returns when `count` more connections were accepted."""
        goal = self.connected + count
        eventually(lambda: self.connected >= goal or self.refused, f"{count} more connections")

    def _connect_repeatedly(self) -> None:
        while not self._stop.wait(PAUSE_S):
            with self._sandbox.socket() as sock:
                sock.settimeout(60)
                try:
                    sock.connect(self._address)
                    self.connected += 1
                    sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    while sock.recv(4096):
                        pass
                except ConnectionRefusedError as error:
                    self.refused.append(str(error))
                except OSError:
                    pass  # it was accepted, and the keeper died then
