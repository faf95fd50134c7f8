"""How a process is known to come from a worker: by its environment, or by a limit that it has inherited.

Each worker has `MMSUP_WORKER=SERVER/WORKER` in its environment, and so has what it starts, unless it starts it with an
environment of its own making. RLIMIT_RTTIME, which bounds real-time processes alone, is inherited by those too. Its
soft limit is set to a number of microseconds that stands for the same names and that nothing reaches: 146,000 years.

    bit 62    set            bits 31 to 61    hash of SERVER            bits 0 to 30    hash of WORKER
"""

from __future__ import annotations

import contextlib
import hashlib
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mmsup.ipc.environment import WORKER_MARK

_PREFIX: Final = f"{WORKER_MARK}=".encode()
_LIMIT_LINE: Final = b"Max realtime timeout"
_MARKED: Final = 1 << 62
_HASH_BITS: Final = 31


def worker_mark(server: str, worker: str) -> str:
    """The value of WORKER_MARK. `server`: the name of its cgroups, which follows from its state directory."""
    return f"{server}/{worker}"


def mark_number(mark: str) -> int:
    """The number that stands for a mark."""
    server, _, worker = mark.rpartition("/")
    return _server_bits(server) | _hash(worker)


def is_of_server(number: int, server: str) -> bool:
    return number >> _HASH_BITS == _server_bits(server) >> _HASH_BITS


def set_limit_mark(environment: Mapping[str, str]) -> None:
    """Mark this process, and what it will start, if it is a worker by its environment. Nothing is done where the limit
    is lower already."""
    mark = environment.get(WORKER_MARK)
    if mark is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_RTTIME, (mark_number(mark), hard))


def read_mark(pid: int) -> int:
    """The number of a process's mark; 0 without one, and for a process that has exited."""
    return _mark_of_environment(pid) or _mark_of_limit(pid)


def _mark_of_environment(pid: int) -> int:
    with contextlib.suppress(OSError):  # or we may not look into it
        for each in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if each.startswith(_PREFIX):
                return mark_number(each.removeprefix(_PREFIX).decode(errors="replace"))
    return 0


def _mark_of_limit(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/limits").read_bytes().splitlines():
            soft = line.removeprefix(_LIMIT_LINE).split()[:1] if line.startswith(_LIMIT_LINE) else []
            if soft and soft[0].isdigit() and int(soft[0]) & _MARKED:
                return int(soft[0])
    return 0


def _server_bits(server: str) -> int:
    return _MARKED | _hash(server) << _HASH_BITS


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
