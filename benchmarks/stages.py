"""Measures the stages of a small request in microseconds, each beside its planned time.

python benchmarks/stages.py [--rounds 40] [--run-s 2] [--json FILE] [--markdown FILE]

The product's own code runs in this process, over sockets, with 32, eight and one requests per loop iteration. The
shortest time of each stage counts, since other work can only lengthen it. Then a whole server is measured, and the CPU
time of its processes is compared with the sum. The requests are known by their bytes; the same as ordinary ones stand
beside. The plan is that of a prototype without most of what a server needs. The speed of this machine today is
calibrated by msgpack, with which the prototype packed the same records.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import shlex
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import machine
import tree
import uvloop
from inside import calibration, kernel
from inside.best import BestTimes, Times, undisturbed
from inside.gateway import KINDS, InProcessGateway
from inside.plan import STAGES
from inside.stage import markdown
from inside.worker import InProcessWorker
from measure import Bench, measure
from network import network
from places import cores
from progress import log_progress
from roster import BY_KEY, OURS, installed

LOADS = 4
"""Runs on a whole server, of each kind; the cheapest counts."""


def measure_in_process(best: BestTimes, rounds: int) -> None:
    """Measure every stage in this process, in rounds, so that no stage is always measured in a slow moment."""
    with (
        tempfile.TemporaryDirectory(prefix="mmsup_bench_") as folder,
        ThreadPoolExecutor(1) as executor,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        gateways = [runner.run(_make_gateway(executor, is_known)) for is_known in (True, False)]
        workers = [InProcessWorker(Path(folder, str(known)), use_known_requests=known) for known in (True, False)]
        for _ in range(rounds):
            with undisturbed():
                calibration.measure(best)
                for gateway in gateways:
                    runner.run(gateway.round(best))
                calibration.measure(best)
                for worker in workers:
                    worker.round(best)
                calibration.measure(best)
                sizes = gateways[0].sizes
                kernel.pair(best, sizes)
                kernel.tcp(best, sizes)
                runner.run(kernel.loop(best, sizes))
        for gateway in gateways:
            runner.run(gateway.close())
        for worker in workers:
            worker.close()


async def _make_gateway(executor: ThreadPoolExecutor, is_known: bool) -> InProcessGateway:
    return InProcessGateway(executor, use_known_requests=is_known)


def measure_server(times: Times, run_s: float) -> None:
    """CPU time of gateway and worker of a server per request, by the number of connections."""
    bench, peer = Bench(cores(), run_s / 3, run_s, network()), BY_KEY[OURS]
    for kind, usual in KINDS.items():
        again = [replace(run, key=f"{run.key}.{place}") for place in range(LOADS) for run in usual.runs]
        scene, runs = replace(usual, runs=tuple(again)), {run.key: run.connections for run in again}
        for row in measure(peer, scene, installed(peer), bench, partial(separate_cores, bench.cores.client)):
            if not row.holds:
                raise SystemExit(f"{kind}: mmsup gave no good answer: {row.trouble}")
            for process in ("gateway", "worker"):
                used, system = (by.get(process, 0.0) for by in (row.cpu_us_by_process, row.system_us_by_process))
                key = f"whole {process}, {kind}", runs[row.run]
                if 0 < used < times.get(key, math.inf):
                    times[key] = used
                    times[f"whole {process} in the kernel, {kind}", runs[row.run]] = system


def separate_cores(core: int) -> None:
    """Pin the worker to the client's core instead of the gateway's, as in the prototype."""
    for pid, each in tree.cpu().items():
        if each.name == "worker":
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), {core})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="rounds inside this process, of about a second (40)")
    parser.add_argument("--run-s", type=float, default=2.0, help="how long each load on a server is measured (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    options = parser.parse_args()
    tree.adopt_orphans()
    tree.end_as_exception()
    facts = machine.describe_machine()
    facts |= {"others on the machine when it began": f"load average {machine.load_average():.2f}"}
    facts |= {"command": shlex.join(["python", "benchmarks/stages.py", *sys.argv[1:]])}
    best, usual = BestTimes(), os.sched_getaffinity(0)
    log_progress("stages inside one process ...")
    os.sched_setaffinity(0, {cores().server})
    measure_in_process(best, options.rounds)
    os.sched_setaffinity(0, usual)
    log_progress("a whole server ...")
    measure_server(best.us, options.run_s)
    factor = calibration.factor(best.us)
    facts |= {"this machine takes": f"{factor:.2f} times as long as the plan's, by msgpack of the same records"}
    text = "\n\n".join(["\n".join(f"- {k}: {v}" for k, v in facts.items()), markdown(STAGES, best.us, factor)])
    print(text)
    if options.json:
        plain = [{"stage": key, "requests a turn": turn, "us": round(us, 3)} for (key, turn), us in best.us.items()]
        options.json.write_text(json.dumps({"facts": facts, "factor": factor, "stages": plain}, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(
            f"# Where the microseconds go\n\nWritten by `python benchmarks/stages.py`.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
