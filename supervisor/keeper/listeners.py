"""The listening sockets of a server: bound once by the keeper, inherited by whoever serves on them.

A gateway or brain that dies leaves its listener open: clients wait in its queue for the next one, none is refused.
Under systemd the same holds for a keeper that dies (fdstore.py).

    http        host:http_port         gateways
    http_unix   http_unix              gateways, where settings name a path
    metrics     metrics_host:port      gateways, unless the port is -1
    control     RUNTIME_DIR/control.sock, mode 0600                brain
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
"""What the kernel may queue while a gateway is away; it cuts this to net.core.somaxconn."""
CONTROL: Final = "control"


class CannotListen(Exception):  # noqa: N818 - reads as what it says
    """An address cannot be had; the text says which, and why."""


class Listeners:
    """All of them by name, from `bind` to `close`."""

    def __init__(self, settings: Settings, kept: Mapping[str, socket.socket] | None = None) -> None:
        """Bind all that the settings name, or none and CannotListen. `kept`: sockets of a former keeper, to go on with
        where they are the same; the others are given up."""
        self._sockets: dict[str, socket.socket] = {}
        self.addresses: dict[str, str] = {}
        """Name to the address in force: `127.0.0.1:8000`, or a path."""
        self.socket_paths: list[str] = []
        """Paths of the UNIX ones."""
        tcp, unix = _tcp_addresses(settings), _unix_paths(settings)
        try:
            for name, sock in (kept or {}).items():
                self._reuse(name, sock, tcp.get(name), unix.get(name))
            for name, (host, port) in tcp.items():
                self._bind_tcp(name, host, port)
            for name, path in unix.items():
                self._bind_unix(name, path)
        except CannotListen:
            self.close()
            raise

    @classmethod
    def adopt(cls, descriptors: Mapping[str, int], addresses: Mapping[str, str], files: Sequence[str]) -> Listeners:
        """The sockets that this process has bound already."""
        made = cls.__new__(cls)
        made._sockets = {name: socket.socket(fileno=fd) for name, fd in descriptors.items()}
        made.addresses, made.socket_paths = dict(addresses), list(files)
        return made

    @property
    def descriptors(self) -> dict[str, int]:
        """All of them by name."""
        return {name: sock.fileno() for name, sock in self._sockets.items()}

    def fileno(self, name: str) -> int:
        """The descriptor of a listener; KeyError if there is none of this name."""
        return self._sockets[name].fileno()

    def store(self, notifier: SystemdNotifier) -> None:
        """Let the service manager hold them for the next keeper, in case that this one is killed."""
        for name, sock in self._sockets.items():
            notifier.store(name, sock.fileno())
        failpoint("keeper.stored")

    def close(self) -> None:
        """Close all and remove the files of the UNIX ones."""
        for sock in self._sockets.values():
            sock.close()
        for path in self.socket_paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _reuse(self, name: str, sock: socket.socket, tcp: tuple[str, int] | None, path: str | None) -> None:
        """Before anything is bound: an address that is not wanted any more may be another listener's now."""
        with contextlib.suppress(OSError):  # a name that says no address is said when it is bound
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


def _tcp_addresses(settings: Settings) -> dict[str, tuple[str, int]]:
    """Name to host and port of the TCP listeners that the settings want."""
    wanted = {"http": (settings.host, settings.http_port)}
    if settings.metrics_port >= 0:
        wanted["metrics"] = (settings.metrics_host, settings.metrics_port)
    return wanted


def _unix_paths(settings: Settings) -> dict[str, str]:
    """Name to path of the UNIX listeners that the settings want."""
    http = {"http_unix": settings.http_unix} if settings.http_unix else {}
    return {**http, CONTROL: paths.control_socket(settings.runtime_dir)}


def _resolve(host: str, port: int) -> tuple[int, tuple[object, ...]]:
    """Family and address."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return found[0][0], found[0][4]


def _remove_stale(path: str) -> None:
    """Remove a socket on which nobody listens any more; leave everything else, so that bind refuses it."""
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
        return "another program has it"
    return error.strerror or str(error)
