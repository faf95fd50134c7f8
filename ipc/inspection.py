"""Keeps processes of the same user out of this one: neither its memory nor its descriptors can be read or changed.

A worker runs a model's code under the server's own uid. Without this it may write into the memory of keeper, controller
and gateways (/proc/PID/mem, ptrace) and copy their descriptors (pidfd_getfd). It does not hold against root and
CAP_SYS_PTRACE. execve() undoes it, so that each program calls it anew.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final

from mmsup.ipc.environment import DUMPABLE

_PR_SET_DUMPABLE: Final = 4


def forbid_inspection(environ: Mapping[str, str]) -> None:
    """Once, before anything comes from a worker; no effect if the operator wants to inspect this process.

    From then on /proc/self belongs to root, and there is no core dump. Processes that are forked inherit it until their
    own execve().
    """
    if environ.get(DUMPABLE, "").lower() not in ("1", "true"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *(ctypes.c_ulong(0) for _ in range(4)))
