from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable

import pytest

from mmsup.ipc.memory.status_page import Activity, StatusPageWriter, make_status_page
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.supervisor.instances.liveness import NS, Hung, LivenessLimits, LoadTimeout
from mmsup.supervisor.instances.liveness_probe import LivenessProbe
from mmsup.supervisor.processes.child_process import ChildProcess

pytestmark = pytest.mark.slow

HANG_S = 0.2


class Silent:
    """Ears that hear nothing."""

    def on_message(self, data: bytes, descriptors: list[int]) -> None: ...

    def on_closed(self) -> None: ...

    def on_crash_output(self, text: str) -> None: ...

    def on_output(self, data: bytes) -> None: ...


class Scene:
    """One process, its page, and what the watch told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["/bin/sleep", "1000"])
        near, self.far = ControlChannel.pair()
        page = make_status_page()
        crash, self.crash_end = os.pipe()
        log, self.log_end = os.pipe()
        self.page = StatusPageWriter(page)
        self.life = ChildProcess(
            "worker.1.1", self.process.pid, [os.pidfd_open(self.process.pid), near.detach(), page, crash, log], Silent()
        )
        self.told: list[Hung | LoadTimeout] = []
        self.at_s: list[float] = []
        self.event = asyncio.Event()

    def watch(self, load_s: float = 60.0) -> LivenessProbe:
        return LivenessProbe(self.life, LivenessLimits(HANG_S, load_s, time.monotonic_ns()), self._tell)

    def _tell(self, verdict: Hung | LoadTimeout) -> None:
        self.told.append(verdict)
        self.at_s.append(time.monotonic())
        self.event.set()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.life.drain_and_close()
        self.far.close()
        os.close(self.crash_end)
        os.close(self.log_end)


def play(act: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene()
        try:
            async with asyncio.timeout(20):
                await act(scene)
        finally:
            scene.close()

    asyncio.run(run())


def test_a_batch_that_hangs_is_found_within_a_tenth_of_a_second_of_its_limit() -> None:
    async def act(scene: Scene) -> None:
        now_ns = time.monotonic_ns()
        scene.page.set_activity(Activity.IDLE, now_ns)
        watch = scene.watch()
        began_s = time.monotonic()
        scene.page.set_activity(Activity.BUSY, time.monotonic_ns())
        await scene.event.wait()
        assert isinstance(scene.told[0], Hung)
        assert HANG_S <= scene.at_s[0] - began_s <= HANG_S + 0.1
        watch.close()

    play(act)


@pytest.mark.parametrize("activity", [Activity.BUSY, Activity.IDLE])
def test_one_that_dates_its_page_to_come_is_found_all_the_same(activity: Activity) -> None:
    async def act(scene: Scene) -> None:
        scene.page.set_activity(activity, 1 << 62)
        watch = scene.watch()
        await scene.event.wait()
        assert isinstance(scene.told[0], Hung)
        watch.close()

    play(act)


def test_a_load_beyond_its_limit_is_told_once() -> None:
    async def act(scene: Scene) -> None:
        scene.page.set_activity(Activity.LOADING, time.monotonic_ns())
        watch = scene.watch(load_s=0.1)
        await scene.event.wait()
        watch.check_overdue(5.0)
        assert [type(each) for each in scene.told] == [LoadTimeout]

    play(act)


def test_a_gateway_that_waits_brings_the_verdict_forward() -> None:
    async def act(scene: Scene) -> None:
        scene.page.set_activity(Activity.IDLE, time.monotonic_ns() - NS)
        scene.page.heartbeat(time.monotonic_ns())
        watch = scene.watch()
        assert not scene.told
        watch.check_overdue(HANG_S * 2)
        assert isinstance(scene.told[0], Hung)

    play(act)


def test_a_process_that_died_in_this_very_turn_is_not_judged() -> None:
    async def act(scene: Scene) -> None:
        scene.page.set_activity(Activity.BUSY, 1)
        scene.process.kill()
        scene.process.wait()
        scene.watch().check_overdue(5.0)
        assert not scene.told

    play(act)
