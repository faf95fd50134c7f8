"""GPUs: which there are, and which of them a worker sees; the home of pynvml.

    python -m mmsup.supervisor.gpu      prints what NVML says, as one JSON object

NVML can hang for ever beside a broken process, so it is called in a helper process with a deadline (`ask`), never in
the brain. What decides here is pure. A worker sees exactly one GPU, by UUID, so that it is `cuda:0` there whatever
the order of the devices; a worker on the CPU sees none.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

DEADLINE_S: Final = 10.0
"""The first call to a driver without a persistence daemon wakes the cards: seconds for a full box."""
LEAVE_S: Final = 1.0
ANSWER_BYTES: Final = 256 << 10


class NoGpu(LookupError):  # noqa: N818 - reads as what it says
    """The device that was asked for is not here; the text says what is."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device, as NVML numbers it."""

    index: int
    uuid: str
    name: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """All devices that work; `why` says why there are none."""

    devices: tuple[Gpu, ...]
    why: str = ""


def parse(text: str) -> Gpus:
    """What the helper printed."""
    try:
        raw = json.loads(text)
        devices = [
            Gpu(int(each["index"]), each["uuid"], each["name"], int(each["total_bytes"])) for each in raw["devices"]
        ]
        return Gpus(tuple(devices), str(raw["why"]))
    except (ValueError, TypeError, LookupError):
        return Gpus((), "the GPU helper said nothing that can be read")


def narrowed(gpus: Gpus, visible: str | None) -> Gpus:
    """Those that the server itself may see, by its own CUDA_VISIBLE_DEVICES and in its order; None is all."""
    if visible is None:
        return gpus
    kept: list[Gpu] = []
    for word in visible.split(","):
        found = _named(gpus, word.strip())
        if found is None:
            break  # CUDA's rule: the first name that is no device ends the list
        kept.append(found)
    return Gpus(tuple(kept), f"CUDA_VISIBLE_DEVICES={visible} shows none" if gpus.devices else gpus.why)


def choose(device: str, gpus: Gpus, taken: Mapping[str, int] | None = None) -> Gpu:
    """The GPU that `cuda`, `cuda:N` or a UUID means. `taken`: how much is on each UUID; plain `cuda` gets the least.

    NoGpu if it is not here.
    """
    if not gpus.devices:
        raise NoGpu(f"device {device!r}: there is no GPU here: {gpus.why}")
    found: Gpu | None
    if device == "cuda":
        load = taken or {}
        found = min(gpus.devices, key=lambda each: load.get(each.uuid, 0))
    elif device.startswith("cuda:"):
        number = device.removeprefix("cuda:")
        found = gpus.devices[int(number)] if number.isdecimal() and int(number) < len(gpus.devices) else None
    else:
        found = _by_uuid(gpus, device)
    if found is None:
        here = ", ".join(f"cuda:{place} ({each.name}, {each.uuid})" for place, each in enumerate(gpus.devices))
        raise NoGpu(f"device {device!r} is not here; there is {here}")
    return found


def visible_devices(device: str, gpus: Gpus | None = None, taken: Mapping[str, int] | None = None) -> str:
    """CUDA_VISIBLE_DEVICES of a worker on this device; empty hides all. NoGpu if it is not here.

    `gpus` None: nobody has asked NVML; the device is then taken at its word, and CUDA will say if it is not there.
    """
    if device == "cpu":
        return ""
    if device.startswith("MIG-"):
        return device  # a part of a card, which the list of cards does not show
    if gpus is not None:
        return choose(device, gpus, taken).uuid
    return {"cuda": "0"}.get(device, device.removeprefix("cuda:"))


async def ask(environ: Mapping[str, str], deadline_s: float = DEADLINE_S) -> Gpus:
    """What NVML says, from a helper that is killed at the deadline. For the brain."""
    try:
        helper = _start(environ)
    except OSError as error:
        return Gpus((), f"the GPU helper could not be started: {error.strerror}")
    assert helper.stdout is not None, "its output is a pipe"
    try:
        async with asyncio.timeout(deadline_s):
            return parse(await _read(helper.stdout.fileno()))
    except TimeoutError:
        return Gpus((), f"NVML did not answer within {deadline_s:g} s")
    finally:
        helper.stdout.close()
        await _end(helper)


def _start(environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-P", "-m", "mmsup.supervisor.gpu"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(argv, stdin=null, stdout=pipe, stderr=null, env=dict(environ))


async def _read(fd: int) -> str:
    data = b""
    os.set_blocking(fd, False)
    while len(data) < ANSWER_BYTES:
        await _readable(fd)
        piece = os.read(fd, ANSWER_BYTES)
        if not piece:
            break
        data += piece
    return data.decode(errors="replace")


async def _end(helper: subprocess.Popen[bytes]) -> None:
    """Kill and reap it; one that cannot be killed is left to the keeper, which ends our session after us."""
    helper.kill()
    if helper.poll() is not None:
        return
    pidfd = os.pidfd_open(helper.pid)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await _readable(pidfd)
        helper.poll()
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


def _named(gpus: Gpus, word: str) -> Gpu | None:
    """By index or UUID, as CUDA_VISIBLE_DEVICES names them."""
    if word.isdecimal():
        return next((each for each in gpus.devices if each.index == int(word)), None)
    return _by_uuid(gpus, word)


def _by_uuid(gpus: Gpus, word: str) -> Gpu | None:
    """A UUID may be cut short, as long as one device alone begins so."""
    found = [each for each in gpus.devices if each.uuid.startswith(word)] if word.startswith("GPU-") else []
    return found[0] if len(found) == 1 else None


def _probe() -> Gpus:
    """Ask NVML. May take for ever."""
    try:
        nvml: Any = importlib.import_module("pynvml")  # ships no types
    except ImportError:
        return Gpus((), "nvidia-ml-py is not installed; the extra is mmsup[gpu]")
    try:
        nvml.nvmlInit()
        found = [_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        return Gpus((), f"NVML: {error}")
    return Gpus(tuple(each for each in found if each is not None), "NVML lists no device that works")


def _device(nvml: Any, index: int) -> Gpu | None:  # the module, which ships no types
    """One device; None for one that has fallen off the bus."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:
        return None
    try:
        total_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        total_bytes = 0  # a device that shares the host's memory has none of its own
    return Gpu(index, uuid, name, total_bytes)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_probe())))
