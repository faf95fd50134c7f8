"""How long a scrape of /metrics keeps the loop of a gateway from requests: the longest stall, with many models.

The handler runs in a loop as a gateway's, beside a task that does nothing but note how long its turns are apart.
`python benchmarks/scrape.py [MODELS]`, 800 by default.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import time
from types import SimpleNamespace
from typing import Any

import uvloop

from mmsup.gateway.api.server import ServerApi
from mmsup.gateway.observability.controller_status import ControllerStatus
from mmsup.gateway.observability.request_counters import COLD, CURRENT, RequestCounters
from mmsup.ipc.memory.counters import CounterTable, make_counter_table

ROUNDS = 20
FOOTPRINT = {"version": "1", "engine": "ort", "device": "cpu", "load_peak_bytes": 1 << 24, "settled_bytes": 1 << 24}


def counters_of(models: int) -> RequestCounters:
    """Two gateways have served each model, and loaded each fourth one from sleep."""
    tables = [CounterTable(make_counter_table()) for _ in range(2)]
    for number in range(models):
        for table in tables:
            table.row(f"model_{number}", "1").add("success", number)
        if number % 16 == 0:
            tables[0].row(f"model_{number}", CURRENT).set("open", 1)
            tables[0].row(f"model_{number}", COLD).add("success")
    return RequestCounters(tables, 0)


def status_of(models: int) -> dict[str, Any]:  # JSON of the controller's status command
    """One in ten is loaded."""
    worker = {
        "id": 1,
        "version": "1",
        "state": "ready",
        "restarts": 0,
        "memory_bytes": 1 << 24,
        "memory_cap_bytes": None,
    }
    rows = [
        {
            "name": f"model_{number}",
            "state": "asleep" if number % 10 else "ready",
            "instances": [] if number % 10 else [worker],
            "footprints": [{**FOOTPRINT, "serving_peak_bytes": 1 << 24, "load_s": 0.1}],
        }
        for number in range(models)
    ]
    return {"models": rows, "brain": {"generation": 1}}


async def longest_stall_s(api: ServerApi) -> tuple[float, float, int]:
    """Of one scrape: the longest time between two turns of the loop, CPU time, bytes of the page."""
    longest_s, stop = 0.0, False

    async def watch() -> None:
        nonlocal longest_s
        last_s = time.thread_time()  # not that of the wall: others may use the machine
        while not stop:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    longest_s = 0.0
    request: Any = SimpleNamespace(echo_headers={})  # what the handler looks at
    started_s = time.process_time()
    page: Any = await api.metrics(request)
    used_s = time.process_time() - started_s
    await asyncio.sleep(0)
    stop = True
    await watcher
    return longest_s, used_s, len(page.body)


async def run(models: int) -> None:
    status = status_of(models)

    async def call(_command: str, _arguments: dict[str, Any]) -> Any:  # JSON
        return status

    router: Any = None  # the handler does not look at it
    api = ServerApi(router, counters_of(models), ControllerStatus(call))
    gc.collect()
    gc.freeze()
    found = [await longest_stall_s(api) for _ in range(ROUNDS)]
    stalls_s, used_s = sorted(each[0] for each in found), sorted(each[1] for each in found)
    print(f"{models} models, {found[0][2] / 1e6:.1f} MB a page, {ROUNDS} scrapes, {os.cpu_count()} processors")
    print(f"longest stall of the loop: median {stalls_s[ROUNDS // 2] * 1e3:.1f} ms, most {stalls_s[-1] * 1e3:.1f} ms")
    print(f"CPU time a scrape (the watching task included): median {used_s[ROUNDS // 2] * 1e3:.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="?", type=int, default=800)
    uvloop.run(run(parser.parse_args().models))
