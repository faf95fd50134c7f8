"""Clients that connect to a service in a nest again and again, while somebody does it harm."""

from __future__ import annotations

import threading

from harness.booted import Service
from harness.server import eventually


class Knocking:
    """Clients that connect again and again, and count who was refused."""

    def __init__(self, service: Service) -> None:
        self.refused: list[str] = []
        self.connected = 0
        self._nest = service.booted.nest
        self._address = service.address()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._knock) for _ in range(4)]

    def __enter__(self) -> Knocking:
        for each in self._threads:
            each.start()
        self.await_more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(60)

    def await_more(self, count: int) -> None:
        """Returns when `count` more have been let in."""
        goal = self.connected + count
        eventually(lambda: self.connected >= goal or self.refused, f"{count} more connections")

    def _knock(self) -> None:
        while not self._stop.is_set():
            with self._nest.socket() as sock:
                sock.settimeout(60)
                try:
                    sock.connect(self._address)
                    self.connected += 1
                    sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: nest\r\nConnection: close\r\n\r\n")
                    while sock.recv(4096):
                        pass
                except ConnectionRefusedError as error:
                    self.refused.append(str(error))
                except OSError:
                    pass  # it had been let in, and its keeper died
