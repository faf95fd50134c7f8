"""A client that shares memory with the server, and takes it from under its own requests."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections import Counter
from typing import Final

from mmsup.supervisor.chaos.inject.context import FAULT_PAYLOAD_VALUES, FaultContext
from mmsup.supervisor.chaos.plan.nemesis import PlannedFault

_FOLDER: Final = "/dev/shm"  # noqa: S108 - where clients share memory; the file is removed
_BYTES: Final = 4 * FAULT_PAYLOAD_VALUES
ROUNDS: Final = 4


async def cut_memory(context: FaultContext, fault: PlannedFault) -> str:
    """Register a file, shorten and lengthen it while requests read it, unregister it under others, and remove it."""
    context.record_start(fault)
    name = f"mmsup_chaos_{secrets.token_hex(6)}"
    base = f"/v2/systemsharedmemory/region/{name}"
    fd = os.open(f"{_FOLDER}/{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, _BYTES)
        body = json.dumps({"key": name, "byte_size": _BYTES}).encode()
        registered = await context.target.call(f"{base}/register", body=body)
        statuses: Counter[int] = Counter()
        for _ in range(ROUNDS):
            requests = [asyncio.create_task(_infer(context, name)) for _ in range(4)]
            for size in (0, _BYTES // 2, _BYTES):
                os.ftruncate(fd, size)
                await asyncio.sleep(0)
            statuses.update(await asyncio.gather(*requests))
        last = asyncio.create_task(_infer(context, name))
        await context.target.call(f"{base}/unregister")
        statuses[await last] += 1
    finally:
        os.close(fd)
        os.unlink(f"{_FOLDER}/{name}")
    return f"registered {registered.status}; {dict(sorted(statuses.items()))}"


async def _infer(context: FaultContext, region: str) -> int:
    """The status of a request to the first model. One of its shapes is that of the model, with or without a batch."""
    model = next(iter(context.target.models))
    place = {"shared_memory_region": region, "shared_memory_byte_size": _BYTES}
    status = 0
    for shape in ([FAULT_PAYLOAD_VALUES], [1, FAULT_PAYLOAD_VALUES]):
        tensor = {"name": "x", "datatype": "FP32", "shape": shape, "parameters": place}
        reply = await context.target.call(f"/v2/models/{model}/infer", body=json.dumps({"inputs": [tensor]}).encode())
        status = reply.status
        if status == 200:
            break
    return status
