"""The NVML helper: its answers, and what happens if it does not answer. Real processes with a fake NVML."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness.nvml import GIB, Card, FakeNvml, helpers_of
from mmsup.supervisor.gpu import nvml_client
from mmsup.supervisor.gpu.inventory import Gpu, GpuLoad, GpuProcess, Gpus
from mmsup.supervisor.gpu.nvml_client import NvmlClient, NvmlTimeout

pytestmark = pytest.mark.slow
HERE = os.getpid()
LOAD = GpuLoad(0.25, 300.5)
"""The fake says nothing of the limit and of energy."""
PCI = "00000000:3B:00.0"


def with_client(env: dict[str, str], play: Callable[[NvmlClient], Awaitable[None]]) -> None:
    """Run with a client; afterwards no process of it is left."""
    gc.collect()  # what earlier tests left in cycles holds descriptors
    before = len(os.listdir("/proc/self/fd"))

    async def run() -> None:
        asked = NvmlClient(env)
        try:
            await play(asked)
        finally:
            await asked.close()

    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) <= before  # others may close theirs meanwhile
    assert not helpers_of(HERE)


def fake_nvml(folder: Path, body: str) -> dict[str, str]:
    """An environment in which `import pynvml` finds this module."""
    (folder / "pynvml.py").write_text(body)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


def test_memory_processes_and_errors_of_each_device_are_returned(tmp_path: Path) -> None:
    nvml = FakeNvml(
        tmp_path,
        Card("GPU-a", free_bytes=GIB, held=((7, 2 * GIB), (8, None)), errors=3),
        Card("GPU-b", lost=True),
        Card("GPU-c", total_bytes=0, errors=None),
    )

    async def play(asked: NvmlClient) -> None:
        found = await asked.query()
        assert found.devices == (
            Gpu(0, "GPU-a", "NVIDIA H200", 80 * GIB, GIB, 3, (GpuProcess(7, 2 * GIB),), PCI, load=LOAD),
            Gpu(2, "GPU-c", "NVIDIA H200", 0, pci=PCI, load=LOAD),
        )
        nvml.set_cards(Card("GPU-a", free_bytes=5 * GIB))
        assert (await asked.query()).devices == (Gpu(0, "GPU-a", "NVIDIA H200", 80 * GIB, 5 * GIB, pci=PCI, load=LOAD),)
        assert len(helpers_of(HERE)) == 1

    with_client(nvml.env, play)


def test_the_parts_of_a_divided_card_are_returned_with_who_is_there(tmp_path: Path) -> None:
    parts = tuple(Card(f"MIG-{number}", 10 * GIB, 9 * GIB, held=((number, GIB),)) for number in (1, 2))

    async def play(asked: NvmlClient) -> None:
        found = await asked.query()
        assert [each.uuid for each in found.devices] == ["GPU-a"]
        assert [(each.uuid, each.card, each.free_bytes, each.held) for each in found.parts] == [
            (f"MIG-{number}", "GPU-a", 9 * GIB, (GpuProcess(number, GIB),)) for number in (1, 2)
        ]

    with_client(FakeNvml(tmp_path, Card("GPU-a", parts=parts)).env, play)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("class NVMLError(Exception): pass\ndef nvmlInit(): raise NVMLError('Driver Not Loaded')", "NVML: Driver Not"),
        ("raise ImportError", "nvidia-ml-py is not installed"),
    ],
)
def test_a_missing_driver_is_the_reason_given(tmp_path: Path, body: str, why: str) -> None:
    async def play(asked: NvmlClient) -> None:
        found = await asked.query()
        assert found.devices == ()
        assert why in found.why

    with_client(fake_nvml(tmp_path, body), play)


@pytest.mark.fault("F21")
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise SystemExit(3)", "the GPU helper ended"),
        ("import os; os.abort()", "the GPU helper ended"),
        ("import time; time.sleep(1000)", "did not answer within 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "did not answer within 1 s"),
    ],
)
def test_a_helper_that_fails_or_hangs_raises_and_leaves_no_process(
    tmp_path: Path, body: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml_client, "FIRST_LIMIT_S", 1.0)

    async def play(asked: NvmlClient) -> None:
        for _ in range(2):
            with pytest.raises(NvmlTimeout, match=why):
                await asked.query()
            assert not helpers_of(HERE)

    with_client(fake_nvml(tmp_path, body), play)


@pytest.mark.fault("F21")
def test_a_helper_that_was_killed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_client, "ANSWER_LIMIT_S", 0.5)

    async def play(asked: NvmlClient) -> None:
        first = await asked.query()
        (helper,) = helpers_of(HERE)
        os.kill(helper, signal.SIGSTOP)
        with pytest.raises(NvmlTimeout):
            await asked.query()
        assert (
            await asked.query()
            == first
            == Gpus((Gpu(0, "GPU-a", "NVIDIA H200", 80 * GIB, 80 * GIB, pci=PCI, load=LOAD),), first.why)
        )
        assert helpers_of(HERE) != [helper]

    with_client(FakeNvml(tmp_path, Card("GPU-a")).env, play)


@pytest.mark.fault("F21")
def test_a_helper_that_cannot_be_killed_is_not_replaced_before_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml_client, "ANSWER_LIMIT_S", 0.5)
    monkeypatch.setattr(nvml_client, "EXIT_LIMIT_S", 0.1)

    async def play(asked: NvmlClient) -> None:
        first = await asked.query()
        (helper,) = helpers_of(HERE)
        os.kill(helper, signal.SIGSTOP)
        with monkeypatch.context() as kernel:
            kernel.setattr("subprocess.Popen.kill", lambda _: None)
            with pytest.raises(NvmlTimeout, match="did not answer"):
                await asked.query()
            with pytest.raises(NvmlTimeout, match="cannot be killed"):
                await asked.query()
            assert helpers_of(HERE) == [helper]
        os.kill(helper, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, helper, os.WEXITED | os.WNOWAIT)
        assert await asked.query() == first

    with_client(FakeNvml(tmp_path, Card("GPU-a")).env, play)
