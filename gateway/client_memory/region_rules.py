"""Which files clients may register as memory regions, and which parts of a region a request may use. Pure."""

from __future__ import annotations

import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.errors import CallerError

KEY: Final = re.compile(r"/?([A-Za-z0-9][A-Za-z0-9._-]{0,253})", re.ASCII)
NAME_LIMIT: Final = 255
RESERVED_PREFIXES: Final = (
    *("sem.", "triton_python_backend_", "torch_", "nccl-", "cuda.shm.", "PostgreSQL.", "pulse-shm-"),
    *("vader_segment.", "sm_segment.", "lttng-"),
)
"""Semaphores, and segments that libraries make for their own processes: what is written there harms these."""
HANDLE_BYTES: Final = 64
"""Of a CUDA IPC handle."""
DEVICE_LIMIT: Final = 1 << 16
DEVICE_BYTES_LIMIT: Final = 1 << 48
"""More than any GPU has: what is sent to other processes fits into 64 bits."""
_ANYONE: Final = stat.S_IROTH | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Peer:
    """The client of a registration."""

    is_local: bool
    """By its listener: only this machine can reach it."""
    uid: int | None = None
    """Of its process; None over TCP, which does not say."""


@dataclass(frozen=True, slots=True)
class RegionSpan:
    """A part of a region that holds one tensor, as a request names it."""

    region: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def file_name(key: str) -> str:
    """The name of a key's file; CallerError for a key that may not be used."""
    found = KEY.fullmatch(key)
    if found is None:
        text = "the key of a shared memory region is one name of letters, digits, '.', '_' and '-', of at most 254"
        raise CallerError("bad_request", f"{text} characters, which a '/' may precede")
    if found[1].startswith(RESERVED_PREFIXES):
        raise CallerError("bad_request", "shared memory with this key belongs to a library: choose another name")
    return found[1]


def check_range(name: str, offset: int, byte_size: int, file_bytes: int | None = None) -> None:
    """CallerError if a region of this size at this offset is none, or not in its file of `file_bytes`."""
    what = f"shared memory region '{name:.200}'"
    if not name or len(name) > NAME_LIMIT:
        raise CallerError("bad_request", f"a shared memory region needs a name of 1 to {NAME_LIMIT} characters")
    if offset < 0 or byte_size <= 0:
        raise CallerError("bad_request", f"{what} needs an offset that is not negative, and a byte_size above 0")
    if file_bytes is not None and offset + byte_size > file_bytes:
        text = f"{what} of {byte_size} bytes at offset {offset} is not in its file, which has {file_bytes} bytes"
        raise CallerError("bad_request", text)


def check_device_memory(name: str, handle: bytes, device: int, byte_size: int) -> None:
    """CallerError if this describes no memory of a GPU. Whether the GPU is here, the controller knows."""
    check_range(name, 0, byte_size)
    what = f"CUDA shared memory region '{name:.200}'"
    if len(handle) != HANDLE_BYTES:
        text = f"{what} needs a raw_handle of {HANDLE_BYTES} bytes, and got one of {len(handle)}"
        raise CallerError("bad_request", text)
    if not 0 <= device < DEVICE_LIMIT or byte_size > DEVICE_BYTES_LIMIT:
        text = f"{what} needs the number of a device, and at most {DEVICE_BYTES_LIMIT} bytes: got device_id {device}"
        raise CallerError("bad_request", f"{text}, {byte_size} bytes")


def check_file(name: str, mode: int, links: int, *, is_on_shm: bool) -> None:
    """CallerError for anything but a regular file of one name in the file system of shared memory."""
    if not stat.S_ISREG(mode) or links != 1 or not is_on_shm:
        raise CallerError("bad_request", f"the key of shared memory region '{name:.200}' names no shared memory")


def check_owner(name: str, owner: int, mode: int, peer: Peer, trusted: Collection[int]) -> None:
    """CallerError if this client may not have the server use the file. `trusted`: the server's uid and listed ones."""
    over_tcp = owner in trusted or mode & _ANYONE == _ANYONE
    if not (over_tcp if peer.uid is None else owner == peer.uid):
        text = f"the memory of shared memory region '{name:.200}' belongs to another user"
        hint = "register your own" if peer.uid is not None else "give it mode 0666, or use a UNIX socket"
        raise CallerError("forbidden", f"{text}: {hint}")


def check_span(span: RegionSpan, byte_size: int, what: str) -> None:
    """CallerError if a tensor's part is not in its region of `byte_size`."""
    if span.end > byte_size:
        text = f"{what} is at bytes {span.offset} to {span.end} of shared memory region '{span.region:.200}'"
        raise CallerError("bad_request", f"{text}, which has {byte_size} bytes")


def short_error(what: str, region: str, found: int, needed: int) -> CallerError:
    """A part of a region is not there any more."""
    text = f"{what} needs {needed} bytes of shared memory region '{region:.200}', of which only {found} are there"
    return CallerError("bad_request", f"{text}: its file has become shorter")
