"""Forks a child whose parent is this process's own parent, by clone3 or clone through ctypes.

The keeper must be the parent of every worker from its first instant, so that no exit is lost and no worker outlives the
keeper; a child that is made by fork() would be the zygote's. CLONE_PARENT does that, and CLONE_PIDFD gives a descriptor
that names the child without a race. What glibc's fork() does around the system call is done here: Python's own hooks,
the thread id in glibc's record of the thread (CLONE_CHILD_SETTID), and the list of robust mutexes. Handlers of
pthread_atfork are not called: they exist for the sake of other threads, and the caller has one thread.

The filters of systemd's RestrictNamespaces and of container engines say of clone3, whose flags they cannot see, that
there is no such call, and let clone pass, which can do the same here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Sequence
from typing import ClassVar, Final

_CLONE3: Final = 435
"""The same on every architecture."""
_CALLS: Final = {"x86_64": (274, 273, 56), "aarch64": (100, 99, 220), "riscv64": (100, 99, 220)}
"""Numbers of get_robust_list, set_robust_list and clone."""
_PR_GET_TID_ADDRESS: Final = 40
_FLAGS: Final = 0x8000 | 0x1000 | 0x01000000 | 0x00200000
"""CLONE_PARENT, CLONE_PIDFD, CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID."""


class _CloneArguments(ctypes.Structure):
    """`struct clone_args` of Linux 5.7 and newer."""

    _fields_: ClassVar = [
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    ]


class Cloner:
    """Everything that a fork needs, made before: between the system call and the child's own code little may run."""

    def __init__(self) -> None:
        """OSError if this machine has not what it takes."""
        if platform.machine() not in _CALLS:
            raise OSError(f"workers are not forked on {platform.machine()}")
        get_list, self._set_list, clone = _CALLS[platform.machine()]
        # PyDLL keeps the interpreter's lock: no other code of Python runs between the hooks and the system call.
        self._library = ctypes.PyDLL(None, use_errno=True)
        self._library.syscall.restype = ctypes.c_long
        thread_id = ctypes.c_void_p()
        if self._library.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(thread_id), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "PR_GET_TID_ADDRESS: the kernel has no CONFIG_CHECKPOINT_RESTORE")
        self._list, self._list_size = ctypes.c_void_p(), ctypes.c_size_t()
        self._call(get_list, ctypes.c_long(0), ctypes.byref(self._list), ctypes.byref(self._list_size))
        self._pidfd = ctypes.c_int(-1)
        pidfd = ctypes.c_void_p(ctypes.addressof(self._pidfd))
        self._arguments = _CloneArguments(flags=_FLAGS, pidfd=pidfd.value, child_tid=thread_id.value, exit_signal=0)
        self._clone3 = _CLONE3, ctypes.byref(self._arguments), ctypes.c_size_t(ctypes.sizeof(self._arguments))
        no_stack, no_tls = ctypes.c_void_p(), ctypes.c_void_p()
        last = (thread_id, no_tls) if platform.machine() == "x86_64" else (no_tls, thread_id)
        self._clone = clone, ctypes.c_ulong(_FLAGS), no_stack, pidfd, *last
        self._system_call: tuple[object, ...] = self._clone3
        self._zero, self._one = ctypes.create_string_buffer(b"0", 1), ctypes.c_size_t(1)
        for name in ("PyOS_BeforeFork", "PyOS_AfterFork_Child", "PyOS_AfterFork_Parent"):
            getattr(ctypes.pythonapi, name).restype = None

    def clone(self, groups: Sequence[int]) -> tuple[int, int]:
        """Pid and pidfd of the child, whose descriptor is the caller's; (0, -1) in the child. OSError without a child.

        The child is in the control groups of these `cgroup.procs` files before it touches any page: what it copies
        from then on is charged to it, and not to this process. It exits if it cannot join one of them."""
        ctypes.pythonapi.PyOS_BeforeFork()
        pid = self._library.syscall(*self._system_call)
        if pid < 0 and self._system_call is self._clone3 and ctypes.get_errno() == errno.ENOSYS:
            self._system_call = self._clone
            pid = self._library.syscall(*self._system_call)
        if pid == 0:
            for each in groups:
                if self._library.write(each, self._zero, self._one) != 1:
                    os._exit(1)
            self._library.syscall(self._set_list, self._list, self._list_size)
            ctypes.pythonapi.PyOS_AfterFork_Child()
            return 0, -1
        error = ctypes.get_errno()
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        if pid < 0:
            raise OSError(error, f"clone: {os.strerror(error)}")
        return pid, self._pidfd.value

    def _call(self, number: int, *arguments: object) -> None:
        if self._library.syscall(number, *arguments):
            raise OSError(ctypes.get_errno(), f"system call {number}")
