from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable

import pytest

from mmsup.ipc.memory.status_page import Activity, StatusPageWriter, make_status_page
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.supervisor.instances.liveness import NS, FirstRuns, Hung, LivenessLimits, LoadTimeout
from mmsup.supervisor.instances.liveness_probe import LivenessProbe
from mmsup.supervisor.processes.child_process import ChildProcess

pytestmark = pytest.mark.slow

HANG_S = 0.2


class Silent:
    """Ignores all events."""

    def on_message(self, data: bytes, descriptors: list[int]) -> None: ...

    def on_closed(self) -> None: ...

    def on_crash_output(self, text: str) -> None: ...

    def on_output(self, data: bytes) -> None: ...


class Process:
    """One process, its status page, and what its probe reports."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["/bin/sleep", "1000"])
        near, self.far = ControlChannel.pair()
        page = make_status_page()
        crash, self.crash_end = os.pipe()
        log, self.log_end = os.pipe()
        self.page = StatusPageWriter(page)
        self.page.batch_executed(1)  # the first run of a life has the limit of the load
        self.life = ChildProcess(
            "worker.1.1", self.process.pid, [os.pidfd_open(self.process.pid), near.detach(), page, crash, log], Silent()
        )
        self.told: list[Hung | LoadTimeout] = []
        self.at_s: list[float] = []
        self.event = asyncio.Event()

    def probe(self, load_s: float = 60.0) -> LivenessProbe:
        return LivenessProbe(self.life, LivenessLimits(HANG_S, load_s, time.monotonic_ns()), self._on_failure)

    def _on_failure(self, verdict: Hung | LoadTimeout) -> None:
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


def play(act: Callable[[Process], Awaitable[None]]) -> None:
    async def run() -> None:
        case = Process()
        try:
            async with asyncio.timeout(20):
                await act(case)
        finally:
            case.close()

    asyncio.run(run())


def test_a_batch_that_hangs_is_found_within_a_tenth_of_a_second_of_its_limit() -> None:
    async def act(case: Process) -> None:
        now_ns = time.monotonic_ns()
        case.page.set_activity(Activity.IDLE, now_ns)
        probe = case.probe()
        began_s = time.monotonic()
        case.page.set_activity(Activity.BUSY, time.monotonic_ns())
        await case.event.wait()
        assert isinstance(case.told[0], Hung)
        assert HANG_S <= case.at_s[0] - began_s <= HANG_S + 0.1
        probe.close()

    play(act)


@pytest.mark.parametrize("activity", [Activity.BUSY, Activity.IDLE])
def test_a_hang_behind_times_in_the_future_is_found(activity: Activity) -> None:
    async def act(case: Process) -> None:
        case.page.set_activity(activity, 1 << 62)
        probe = case.probe()
        await case.event.wait()
        assert isinstance(case.told[0], Hung)
        probe.close()

    play(act)


def test_a_load_beyond_its_limit_is_reported_once() -> None:
    async def act(case: Process) -> None:
        case.page.set_activity(Activity.LOADING, time.monotonic_ns())
        probe = case.probe(load_s=0.1)
        await case.event.wait()
        probe.check(5.0)
        assert [type(each) for each in case.told] == [LoadTimeout]

    play(act)


def test_an_overdue_request_is_checked_at_once() -> None:
    async def act(case: Process) -> None:
        case.page.set_activity(Activity.IDLE, time.monotonic_ns() - NS)
        case.page.heartbeat(time.monotonic_ns())
        probe = case.probe()
        assert not case.told
        probe.check(HANG_S * 2)
        assert isinstance(case.told[0], Hung)

    play(act)


def test_a_quick_first_run_of_a_worker_that_died_before_the_next_check_is_known_in_the_next_life() -> None:
    async def act(case: Process) -> None:
        first_runs = FirstRuns()
        limits = LivenessLimits(HANG_S, 60.0, time.monotonic_ns())
        case.page.set_activity(Activity.IDLE, time.monotonic_ns())
        probe = LivenessProbe(case.life, limits, case.told.append, first_runs=first_runs)
        first_runs.may_be_slow = True  # as if the page had shown no run until now
        probe.close()
        assert not first_runs.may_be_slow

    play(act)


def test_a_process_that_died_in_this_loop_iteration_is_not_judged() -> None:
    async def act(case: Process) -> None:
        case.page.set_activity(Activity.BUSY, 1)
        case.process.kill()
        case.process.wait()
        case.probe().check(5.0)
        assert not case.told

    play(act)
