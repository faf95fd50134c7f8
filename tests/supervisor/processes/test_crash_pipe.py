"""A worker that crashes while others have the processors writes its first line in pieces."""

from __future__ import annotations

import asyncio
import os

from mmsup.supervisor.processes.child_process import CRASH_DELAY_S, CrashPipe


def test_a_crash_is_reported_with_its_whole_first_line() -> None:
    async def act() -> str:
        reading, writing = os.pipe()
        reported: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        pipe = CrashPipe(reading, lambda: reported.set_result(pipe.text))
        os.write(writing, b"Fatal Python error: ")
        await asyncio.sleep(5 * CRASH_DELAY_S)
        os.write(writing, b"Bus error\n\n")
        async with asyncio.timeout(5):
            text = await reported
        pipe.close()
        os.close(writing)
        return text

    assert asyncio.run(act()).startswith("Fatal Python error: Bus error\n")
