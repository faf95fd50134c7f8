"""`python deny_calls.py CALL:ERRNO,… PROGRAM ARGUMENT…`: runs a program to which the kernel refuses these system calls.

The filter is seccomp's, as a container's profile is; all children of the program inherit it. x86_64 and aarch64 only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Final

NUMBERS: Final = {
    "x86_64": {
        "memfd_create": 319,
        "pidfd_open": 434,
        "pidfd_send_signal": 424,
        "signalfd4": 289,
        "eventfd2": 290,
        "timerfd_create": 283,
        "unshare": 272,
        "socketpair": 53,
        "epoll_create1": 291,
        "clone3": 435,
    },
    "aarch64": {
        "memfd_create": 279,
        "pidfd_open": 434,
        "pidfd_send_signal": 424,
        "signalfd4": 74,
        "eventfd2": 19,
        "timerfd_create": 85,
        "unshare": 97,
        "socketpair": 199,
        "epoll_create1": 20,
        "clone3": 435,
    },
}
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def deny(calls: dict[str, int]) -> None:
    """Refuse these calls to this process from now on, each with its errno."""
    numbers = NUMBERS[platform.machine()]
    code = [struct.pack("HBBI", _LOAD, 0, 0, 0)]  # the number of the call
    for name, error in calls.items():
        code.append(struct.pack("HBBI", _JUMP_EQUAL, 0, 1, numbers[name]))
        code.append(struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | error))
    code.append(struct.pack("HBBI", _RETURN, 0, 0, _ALLOW))
    program = _Program(len(code), b"".join(code))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(program), zero, zero):
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")


def main(calls: str, *command: str) -> None:
    deny({name: getattr(errno, error) for name, _, error in (each.partition(":") for each in calls.split(","))})
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
