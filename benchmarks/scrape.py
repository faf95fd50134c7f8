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


async def scrape(api: ServerApi) -> tuple[float, int]:
    """CPU time of one scrape, bytes of the page."""
    request: Any = SimpleNamespace(echo_headers={})  # what the handler looks at
    started_s = time.thread_time()
    page: Any = await api.metrics(request)
    return time.thread_time() - started_s, len(page.body)


async def longest_stall_s(api: ServerApi) -> float:
    """The longest time between two turns of the loop during one scrape."""
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
    await scrape(api)
    await asyncio.sleep(0)
    stop = True
    await watcher
    return longest_s


async def run(models: int) -> None:
    status = status_of(models)

    async def call(_command: str, _arguments: dict[str, Any]) -> Any:  # JSON
        return status

    router: Any = None  # the handler does not look at it
    api = ServerApi(router, counters_of(models), ControllerStatus(call))
    gc.collect()
    gc.freeze()
    stalls_s = sorted([await longest_stall_s(api) for _ in range(ROUNDS)])
    pages = [await scrape(api) for _ in range(ROUNDS)]
    used_s = sorted(each for each, _ in pages)
    print(f"{models} models, {pages[0][1] / 1e6:.1f} MB a page, {ROUNDS} scrapes, {os.cpu_count()} processors")
    print(f"longest stall of the loop: median {stalls_s[ROUNDS // 2] * 1e3:.1f} ms, most {stalls_s[-1] * 1e3:.1f} ms")
    print(f"CPU time of a scrape: median {used_s[ROUNDS // 2] * 1e3:.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="?", type=int, default=800)
    uvloop.run(run(parser.parse_args().models))
