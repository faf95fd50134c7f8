"""Runs the NVML helper process (gpu/__main__.py) for the controller: starts it on demand, kills it at its deadline.

NVML can hang for ever beside a broken process; then the helper alone hangs. One that SIGKILL does not end, because it
is blocked in the driver, is not replaced until it is gone: there is never more than one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from mmsup.supervisor.gpu.inventory import Gpus, parse

FIRST_LIMIT_S: Final = 10.0
"""The first call to a driver without a persistence daemon initialises the GPUs: seconds on a machine with many."""
ANSWER_LIMIT_S: Final = 3.0
EXIT_LIMIT_S: Final = 1.0
MAX_ANSWER_BYTES: Final = 1 << 20


class NvmlTimeout(Exception):  # noqa: N818 - a state, not an error of the server
    """NVML has not answered; the text says why."""


class NvmlClient:
    """One helper process and one query at a time."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._helper: subprocess.Popen[bytes] | None = None
        self._has_answered = False

    async def query(self) -> Gpus:
        limit_s = ANSWER_LIMIT_S if self._has_answered else FIRST_LIMIT_S
        try:
            helper = self._start()
            async with asyncio.timeout(limit_s):
                answer = parse(await _exchange(helper))
        except TimeoutError:
            await self.close()
            raise NvmlTimeout(f"NVML did not answer within {limit_s:g} s") from None
        except OSError as error:
            await self.close()
            raise NvmlTimeout(f"the GPU helper ended: {error.strerror}") from None
        self._has_answered = True
        return answer

    async def close(self) -> None:
        """Kill and reap the helper; one that cannot be killed is left to the keeper, which ends this session."""
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
        """The helper, started if there is none; OSError if that fails."""
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
    """Send one line and return one; OSError if the helper has exited."""
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
