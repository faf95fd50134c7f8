"""The listening sockets of a server: bound once by the keeper, inherited by the processes that serve on them.

When a gateway or the controller dies, its listener stays open: clients wait in the socket's queue for the next process,
and none is refused. Under systemd the same holds when the keeper dies (linux/fd_store.py).

    http        host:http_port         gateways
    http_unix   http_unix              gateways, where settings name a path
    grpc        grpc_host:grpc_port    gateways, unless the port is -1
    grpc_unix   grpc_unix              gateways, where settings name a path
    metrics     metrics_host:port      gateways, unless the port is -1
    relay       RUNTIME_DIR/relay.sock, mode 0600: gateways, for the gRPC front process
    control     RUNTIME_DIR/control.sock, mode 0600                controller
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from typing import Final

from mmsup.ipc import paths
from mmsup.ipc.failpoints import failpoint
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.linux import fd_store
from mmsup.supervisor.linux.sd_notify import SystemdNotifier

BACKLOG: Final = 4096
"""Connections that the kernel queues while no gateway accepts; it limits this to net.core.somaxconn."""
CONTROL: Final = "control"
GRPC: Final = "grpc"
RELAY: Final = "relay"
NO_GRPC: Final = "gRPC is not served; --grpc-port chooses another port, -1 none"


class CannotListen(Exception):  # noqa: N818 - reads as what it says
    """An address cannot be bound; the text says which, and why."""


class Listeners:
    """All of them by name."""

    def __init__(self, settings: Settings, stored: Mapping[str, socket.socket] | None = None) -> None:
        """Bind all addresses of the settings; CannotListen if one fails, and then none stays bound. `stored`: sockets
        of the previous keeper; those with the same address are reused, the others closed."""
        self._sockets: dict[str, socket.socket] = {}
        self.addresses: dict[str, str] = {}
        """Name to the bound address: `127.0.0.1:8000`, or a path."""
        self.socket_paths: list[str] = []
        self.warnings: list[str] = []
        """Why something that was not asked for is not served."""
        tcp = {"http": (settings.host, settings.http_port)}
        if 0 < settings.grpc_port in (settings.http_port, settings.metrics_port) and not settings.grpc_is_wanted:
            self.warnings.append(f"port {settings.grpc_port} is another listener's: {NO_GRPC}")
        elif settings.grpc_port >= 0:
            tcp[GRPC] = (settings.grpc_host, settings.grpc_port)
        if settings.metrics_port >= 0:
            tcp["metrics"] = (settings.metrics_host, settings.metrics_port)
        unix = {"http_unix": settings.http_unix, "grpc_unix": settings.grpc_unix}
        unix = {name: path for name, path in unix.items() if path}
        unix[CONTROL] = paths.control_socket(settings.runtime_dir)
        unix[RELAY] = paths.relay_socket(settings.runtime_dir)
        try:
            for name, sock in (stored or {}).items():
                self._reuse(name, sock, tcp.get(name), unix.get(name))
            for name, (host, port) in tcp.items():
                try:
                    self._bind_tcp(name, host, port)
                except CannotListen as error:
                    if name != GRPC or settings.grpc_is_wanted:
                        raise
                    self._sockets.pop(name).close()
                    self.warnings.append(f"{error}: {NO_GRPC}")
            for name, path in unix.items():
                if name != RELAY or GRPC in self.addresses or settings.grpc_unix:
                    self._bind_unix(name, path)
        except CannotListen:
            self.close()
            raise

    @classmethod
    def adopt(
        cls, descriptors: Mapping[str, int], addresses: Mapping[str, str], socket_paths: Sequence[str]
    ) -> Listeners:
        """The sockets that this process has bound already."""
        adopted = cls.__new__(cls)
        adopted._sockets = {name: socket.socket(fileno=fd) for name, fd in descriptors.items()}
        adopted.warnings = []
        adopted.addresses, adopted.socket_paths = dict(addresses), list(socket_paths)
        return adopted

    @property
    def descriptors(self) -> dict[str, int]:
        return {name: sock.fileno() for name, sock in self._sockets.items()}

    def fileno(self, name: str) -> int:
        """KeyError if there is no listener of this name."""
        return self._sockets[name].fileno()

    def store(self, notifier: SystemdNotifier) -> None:
        """Give copies to systemd, which passes them to the next keeper if this one is killed."""
        for name, sock in self._sockets.items():
            notifier.store(name, sock.fileno())
        failpoint("keeper.stored")

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        for path in self.socket_paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _reuse(self, name: str, sock: socket.socket, tcp: tuple[str, int] | None, path: str | None) -> None:
        """Keep a stored socket if its address is still configured. Done for all of them before anything is bound: an
        address that one listener gives up may be another one's now."""
        with contextlib.suppress(OSError):  # a host that cannot be resolved is reported when it is bound
            is_same = tcp is not None and fd_store.is_listening_on(sock, *_resolve(*tcp))
            if is_same or (path is not None and fd_store.is_listening_at(sock, path)):
                self._sockets[name] = sock
                failpoint("keeper.taken_back")
                return
        fd_store.discard(sock)

    def _bind_tcp(self, name: str, host: str, port: int) -> None:
        try:
            if name not in self._sockets:
                family, address = _resolve(host, port)
                sock = self._sockets[name] = socket.socket(family, socket.SOCK_STREAM)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
            self._listen(self._sockets[name])
        except OSError as error:
            raise CannotListen(f"{name}: cannot listen on {_address_text(host, port)}: {_reason(error)}") from error
        self.addresses[name] = _address_text(*self._sockets[name].getsockname()[:2])

    def _bind_unix(self, name: str, path: str) -> None:
        if len(os.fsencode(path)) > paths.SOCKET_PATH_LIMIT:
            raise CannotListen(f"{name}: {path} is too long for a socket: {paths.SOCKET_PATH_LIMIT} bytes at most")
        try:
            if name not in self._sockets:
                _remove_stale(path)
                sock = self._sockets[name] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.bind(path)
                os.chmod(path, 0o600)  # nobody can have connected: it does not listen yet
            self.socket_paths.append(path)
            self._listen(self._sockets[name])
        except OSError as error:
            raise CannotListen(f"{name}: cannot listen on {path}: {_reason(error)}") from error
        self.addresses[name] = path

    def _listen(self, sock: socket.socket) -> None:
        failpoint("keeper.listen")
        sock.listen(BACKLOG)
        sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature


def _resolve(host: str, port: int) -> tuple[int, tuple[object, ...]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return found[0][0], found[0][4]


def _remove_stale(path: str) -> None:
    """Remove a socket file on which no process listens; leave anything else, so that bind fails."""
    try:
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return


def _address_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program uses it"
    return error.strerror or str(error)
