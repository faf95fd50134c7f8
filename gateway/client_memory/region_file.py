"""Opens, reads and writes the files of memory regions. Never maps them, and never follows a link.

Reads and writes go in steps, since the event loop waits for each.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Final

from mmsup.gateway.client_memory import region_rules
from mmsup.gateway.client_memory.region_rules import Peer
from mmsup.ipc.errors import CallerError, ServerError

FOLDER: Final = "/dev/shm"  # noqa: S108 - where clients make shared memory; nothing is made here
STEP_BYTES: Final = 1 << 20
"""Copied per event-loop iteration: about 0.1 ms."""
_MOUNTS: Final = "/proc/self/mountinfo"
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def is_tmpfs(mounts: str, folder: str) -> bool:
    """Whether the last mount at `folder` is one of tmpfs, by the text of /proc/self/mountinfo."""
    kind = ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[4:5] == [folder]:
            kind = after.partition(" ")[0]
    return kind == "tmpfs"


def open_folder() -> int:
    """A descriptor of /dev/shm that the caller owns; -1 if there is none on this machine."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as file:
            if not is_tmpfs(file.read(), FOLDER):
                return -1
        return os.open(FOLDER, _FOLDER_FLAGS)
    except OSError:
        return -1


def open_region(name: str, key: str, offset: int, byte_size: int, peer: Peer, trusted: frozenset[int]) -> int:
    """A descriptor of the file of a region, after all checks; the caller owns it."""
    file = region_rules.file_name(key)
    region_rules.check_range(name, offset, byte_size)
    folder = open_folder()
    if folder < 0:
        raise CallerError("not_implemented", "this server has no shared memory that clients could use")
    fd = -1
    try:
        _check(name, os.stat(file, dir_fd=folder, follow_symlinks=False), folder)  # a device is not even opened
        fd = os.open(file, _FLAGS, dir_fd=folder)
        found = os.fstat(fd)
        _check(name, found, folder)
        region_rules.check_owner(name, found.st_uid, found.st_mode, peer, trusted)
        region_rules.check_range(name, offset, byte_size, found.st_size)
    except OSError as error:
        raise _open_error(name, error) from None
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    finally:
        os.close(folder)
    return fd


def _check(name: str, found: os.stat_result, folder: int) -> None:
    is_on_shm = found.st_dev == os.fstat(folder).st_dev
    region_rules.check_file(name, found.st_mode, found.st_nlink, is_on_shm=is_on_shm)


def _open_error(name: str, error: OSError) -> CallerError | ServerError:
    what = f"shared memory region '{name:.200}'"
    if error.errno == errno.ENOENT:
        return CallerError("bad_request", f"unable to open {what}: there is no shared memory with this key here")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        text = f"unable to open {what}: the server may not read and write its file"
        return CallerError("forbidden", f"{text}; give it mode 0666, or run both as one user")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return ServerError("too_many_files", f"unable to open {what}: the server has too many files open")
    return CallerError("bad_request", f"unable to open {what}: its key names no shared memory")


async def read(fd: int, at: int, view: memoryview) -> int:
    """Copy the bytes of a file from `at` on into a view; how many there were."""
    done = 0
    while done < len(view):
        if done:
            await asyncio.sleep(0)
        count = _read_some(fd, at + done, view[done : done + STEP_BYTES])
        if not count:
            break
        done += count
    return done


def _read_some(fd: int, at: int, view: memoryview) -> int:
    try:
        return os.preadv(fd, [view], at)
    except (OSError, OverflowError):  # a file that cannot be read has no bytes for this request
        return 0


async def write(fd: int, at: int, data: memoryview) -> int:
    """Copy `data` into a file from `at` on, as far as the file goes; how many bytes were written.

    A write beyond its end would make it longer, with memory that counts as ours. Its size is read before each step: a
    client that shortens it between the two has at most one step of what it has registered added again.
    """
    done = 0
    while done < len(data):
        if done:
            await asyncio.sleep(0)
        try:
            room = os.fstat(fd).st_size - at - done
            step = data[done : done + min(STEP_BYTES, room)] if room > 0 else b""
            count = os.pwritev(fd, [step], at + done) if step else 0
        except (OSError, OverflowError):
            break
        if not count:
            break
        done += count
    return done
