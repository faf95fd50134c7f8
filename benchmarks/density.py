"""Measures many more models than fit: a budget for about 40 of 200, asked at random, and every answer compared.

    python benchmarks/density.py [--models 200] [--fit 40] [--run-s 300] [--streams uniform,zipf] [--seed 1]
                                 [--memory-budget SIZE] [--evict client] [--eager] [--starts FILE]
                                 [--json FILE] [--markdown FILE] [--plot FILE] [FLAG OF mmsup serve …]
    python benchmarks/density.py --report FILE.json … [--markdown FILE] [--plot FILE]

First a server without a budget: every model is asked once, put to sleep, and asked again alone, which is its own
start; what all workers and zygotes hold when `--fit` models are loaded becomes the budget. Then a server with that
budget: for each stream the rate of a closed loop, and then an open loop at 60 % of it. Other flags go to both servers.
With `--starts` what the first server has shown is read from the file, or written to it if there is none: so streams can
be run one at a time (`--streams uniform`), and `--report` puts what they wrote with `--json` into one report.
With `--evict client` the server is given no budget, and this program puts the model that was asked longest ago to sleep
when more than `--fit` are loaded. With `--eager` there is one server, with all models loaded from the start and no
budget. The exit code is 1 if a request failed, an answer was wrong or memory was over the budget.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import machine
import tree
import uvloop
from client_eviction import ClientEviction
from cold_stages import EventReader, stage_table, with_replies
from cpu_shares import CpuReading, cpu_table, read_cpu
from density_client import DensityClient, Reply
from density_file import Density, Starts, read_density, read_starts, together, write_density, write_starts
from density_plot import draw
from density_report import MIB, StreamRun, loads, report, result
from event_tail import EventTail
from memory_curve import MemoryCurve, MemorySample, sample
from model_streams import STREAMS, arrivals_s, sequence
from progress import log_progress
from small_models import SmallModel, write_models
from table import figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from harness.server import serving
from mmsup.supervisor.config import units

SHARE = 0.6
"""Of the closed loop's rate."""
CLOSED_S = 20.0
ON_DEMAND = ("--model-control-mode", "on-demand")


def measure_starts(models: Sequence[SmallModel], repository: Path, options: argparse.Namespace) -> Starts:
    """Each model's own start, and what so many of them hold."""
    found, events = Starts(), EventReader()
    with serving(repository, *ON_DEMAND, *options.flags) as server:
        tail = EventTail(server.state_dir / "events.jsonl")
        client = DensityClient(server.address(), models, options.seed)
        everyone = range(len(models))

        async def ask(asked: Sequence[int]) -> list[Reply]:
            replies = await client.one_by_one(asked)
            found.faults += client.faults(replies)
            return replies

        async def run() -> None:
            log_progress(f"{len(models)} models, each asked once")
            await ask(everyone)
            for model in models:
                server.ctl("sleep", name=model.name)
            log_progress("each asked again, alone, from sleep")
            asked = list[Reply]()
            deque(tail.read(), maxlen=0)
            for place in everyone:
                (reply,) = await ask([place])
                asked.append(reply)
                found.own_s[place] = reply.took_s
                if not reply.is_cold:
                    found.faults.append(f"{models[place].name} was asleep, and the reply does not say so")
                if place + 1 == options.fit:
                    found.fitting = sample(server.process.pid, server.state_dir)
            found.all_loaded = sample(server.process.pid, server.state_dir)
            for event in tail.read():
                events.read(event)
            with_replies(events.starts, asked, [each.name for each in models], time.time() - time.monotonic())
            found.stages = stage_table(events.starts)
            client.close()

        uvloop.run(run())
        server.stop()
    return found


@dataclass
class StreamsSeen:
    """What the server with the budget has shown."""

    runs: list[StreamRun] = field(default_factory=list[StreamRun])
    spans: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    samples: list[MemorySample] = field(default_factory=list[MemorySample])
    cold_starts: EventReader = field(default_factory=EventReader)


def measure_streams(
    models: Sequence[SmallModel], repository: Path, options: argparse.Namespace, flags: Sequence[str]
) -> StreamsSeen:
    """Every stream on one server."""
    seen = StreamsSeen()
    with serving(repository, *flags) as server:
        client = DensityClient(server.address(), models, options.seed)
        evicting = ClientEviction(options.fit, lambda model: server.ctl("sleep", name=models[model].name))
        if options.evict == "client":
            client.on_begin, client.on_end = evicting.begin, evicting.end
        tail = EventTail(server.state_dir / "events.jsonl")

        def follow() -> None:
            for event in tail.read():
                seen.cold_starts.read(event)

        with MemoryCurve(server.process.pid, server.state_dir, follow) as curve, evicting:
            uvloop.run(_streams(client, curve, options, seen, lambda: read_cpu(server.process.pid)))
        tail.close()
        seen.samples = curve.samples
        seen.runs[-1].faults.extend(evicting.faults)
        log_progress(
            f"{client.replaced} kept connections were closed meanwhile; events: {dict(seen.cold_starts.counts)}"
        )
        server.stop()
    ahead_s, names = time.time() - time.monotonic(), [each.name for each in models]
    for place, run in enumerate(seen.runs):
        from_s, to_s = (each + ahead_s for each in seen.spans[run.stream])
        starts = [each for each in seen.cold_starts.starts if from_s <= each.waking_s <= to_s]
        with_replies(starts, run.replies, names, ahead_s)
        kinds = [each.kind for each in models]
        seen.runs[place] = replace(run, kinds=kinds, stages=stage_table(starts))
    return seen


async def _streams(
    client: DensityClient,
    curve: MemoryCurve,
    options: argparse.Namespace,
    seen: StreamsSeen,
    cpu: Callable[[], CpuReading],
) -> None:
    log_progress("every model asked once, within the budget")
    replies = await client.one_by_one(range(options.models))
    asked, faults = [reply.model for reply in replies], list(client.faults(replies))
    if len(faults) == options.models:
        raise SystemExit(f"no model answers: {faults[0]}")
    for stream in options.streams:
        pattern = sequence(stream, options.models, 1 << 16, options.seed + 1)
        replies = await client.closed_loop(pattern, options.connections, options.closed_s)
        faults += client.faults(replies)
        asked += [reply.model for reply in sorted(replies, key=lambda reply: reply.due_s)]
        later_s = replies[0].due_s + options.closed_s / 4
        closed = sum(reply.due_s >= later_s for reply in replies) / (options.closed_s * 3 / 4)
        rate = SHARE * closed
        log_progress(f"{stream}: closed loop {closed:.1f}/s, so {rate:.1f}/s for {options.run_s:.0f} s")
        at_s = arrivals_s(rate, options.run_s, options.seed)
        began_s, used = time.monotonic(), cpu()
        replies = await client.open_loop(sequence(stream, options.models, len(at_s), options.seed), at_s)
        seen.spans[stream] = began_s, time.monotonic()
        faults += client.faults(replies)
        log_progress(f"{stream}: {len(replies)} requests, {len(faults)} failed")
        samples = curve.between(*seen.spans[stream])
        processors = cpu_table(used, cpu(), loads(replies))
        seen.runs.append(StreamRun(stream, closed, rate, list(asked), replies, faults, samples, processors=processors))
        asked, faults = asked + [reply.model for reply in replies], []
    client.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--fit", type=int, default=40, help="how many of them the budget holds (40)")
    parser.add_argument("--memory-budget", type=units.size, default=0, metavar="SIZE", help="this budget instead")
    parser.add_argument("--run-s", type=float, default=300.0, help="of each stream (300)")
    parser.add_argument("--closed-s", type=float, default=CLOSED_S, help="of the closed loop before each (20)")
    parser.add_argument("--connections", type=int, default=16, help="of the closed loop (16)")
    parser.add_argument("--streams", type=lambda text: [*filter(None, text.split(","))], default=list(STREAMS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evict", choices=("server", "client"), default="server", help="who does it (server)")
    parser.add_argument("--eager", action="store_true", help="all models loaded from the start, without a budget")
    parser.add_argument("--starts", type=Path, metavar="FILE", help="what the first server has shown")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--report", type=Path, nargs="+", metavar="FILE", help="measure nothing; report these")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="memory over time, as SVG")
    options, flags = parser.parse_known_args()
    options.flags = flags
    return options


def measure(options: argparse.Namespace) -> Density:
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as folder:
        repository = Path(folder) / "models"
        models = write_models(repository, options.models, options.seed)
        starts = Starts()
        if options.starts and options.starts.exists():
            starts = read_starts(options.starts)
        elif not options.eager:
            starts = measure_starts(models, repository, options)
            if options.starts:
                write_starts(starts, options.starts)
        budget = options.memory_budget or (starts.fitting.counted if starts.fitting else 0)
        flags = [] if options.eager else [*ON_DEMAND]
        flags += [] if options.eager or options.evict == "client" else ["--memory-budget", str(budget)]
        seen = StreamsSeen()
        if options.streams:
            seen = measure_streams(models, repository, options, [*flags, *options.flags])
    facts = machine.describe_machine() | {"command": shlex.join(["python", "benchmarks/density.py", *sys.argv[1:]])}
    if starts.all_loaded is not None:
        counted = figure(starts.all_loaded.counted / MIB)
        facts["all loaded at once"] = f"{starts.all_loaded.workers} workers and their zygotes, {counted} MiB"
    results = [result(run, starts.own_s) for run in seen.runs]
    return Density(facts, budget, starts.faults, results, seen.samples, seen.spans, starts.stages)


def main() -> int:
    options = arguments()
    tree.end_as_exception()
    density = together([read_density(each) for each in options.report]) if options.report else measure(options)
    text = report(density)
    print(text)
    if options.json:
        write_density(density, options.json)
    if options.plot:
        draw(density.samples, density.spans, density.budget, options.plot)
    if options.markdown:
        picture = f"![Memory over time]({options.plot.name})\n\n" if options.plot else ""
        options.markdown.write_text(f"# More models than fit\n\nWritten by `benchmarks/density.py`.\n\n{picture}{text}")
    is_over = bool(density.budget) and any(each.counted_peak > density.budget for each in density.streams)
    return 1 if is_over or density.faults or any(each.faults for each in density.streams) else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
