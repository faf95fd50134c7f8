"""The helper that asks NVML for the brain (gpu.py is its program): started when it is needed, killed when it is silent.

NVML can hang for ever beside a broken process. The helper alone hangs with it, and is killed at its deadline. One that
SIGKILL does not end, since the driver holds it, has no successor before it is gone: there is never more than one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from mmsup.supervisor.gpu import inventory

FIRST_LIMIT_S: Final = 10.0
"""The first call to a driver without a persistence daemon wakes the cards: seconds for a full box."""
ANSWER_LIMIT_S: Final = 3.0
EXIT_LIMIT_S: Final = 1.0
MAX_ANSWER_BYTES: Final = 1 << 20


class NvmlTimeout(Exception):  # noqa: N818 - reads as what it says
    """NVML has not said anything; the text says why."""


class NvmlClient:
    """One helper at a time, for one who asks at a time."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._helper: subprocess.Popen[bytes] | None = None
        self._has_answered = False

    async def query(self) -> inventory.Gpus:
        """What NVML says now; Silent if it does not say it in time."""
        limit_s = ANSWER_LIMIT_S if self._has_answered else FIRST_LIMIT_S
        try:
            helper = self._start()
            async with asyncio.timeout(limit_s):
                answer = inventory.parse(await _exchange(helper))
        except TimeoutError:
            await self.close()
            raise NvmlTimeout(f"NVML did not answer within {limit_s:g} s") from None
        except OSError as error:
            await self.close()
            raise NvmlTimeout(f"the GPU helper ended: {error.strerror}") from None
        self._has_answered = True
        return answer

    async def close(self) -> None:
        """Kill and reap it; one that cannot be killed is left to the keeper, which ends our session after us."""
        helper = self._helper
        if helper is None:
            return
        self._has_answered = False
        helper.kill()
        if helper.poll() is None:
            await _wait(helper)
        for pipe in (helper.stdin, helper.stdout):
            if pipe is not None:
                pipe.close()
        if helper.poll() is not None:
            self._helper = None

    def _start(self) -> subprocess.Popen[bytes]:
        """The helper; OSError if there can be none."""
        if self._helper is None:
            argv = [sys.executable, "-P", "-m", "mmsup.supervisor.gpu"]
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            self._helper = subprocess.Popen(
                argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=null, env=dict(self._environ)
            )
        elif self._helper.stdin is None or self._helper.stdin.closed:
            if self._helper.poll() is None:
                raise NvmlTimeout("the GPU helper hangs in the driver and cannot be killed")
            self._helper = None
            return self._start()
        return self._helper


async def _exchange(helper: subprocess.Popen[bytes]) -> bytes:
    """One line for one line; OSError if the helper has ended."""
    assert helper.stdin is not None, "its input is a pipe"
    assert helper.stdout is not None, "its output is a pipe"
    helper.stdin.write(b"\n")
    line = b""
    while not line.endswith(b"\n") and len(line) < MAX_ANSWER_BYTES:
        await _readable(helper.stdout.fileno())
        piece = os.read(helper.stdout.fileno(), MAX_ANSWER_BYTES)
        if not piece:
            raise BrokenPipeError(0, "it closed its output")
        line += piece
    return line


async def _wait(helper: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(helper.pid)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_LIMIT_S):
                await _readable(pidfd)
    finally:
        os.close(pidfd)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
