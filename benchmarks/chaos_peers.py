"""Runs the same faults against mmsup and other servers: what clients of a healthy model see while another one fails.

    python benchmarks/chaos_peers.py --seconds 120 --seed 42 [--peers mmsup,triton] [--faults segv] [--markdown FILE]

Plan, clients, payloads and history are those of `mmsup chaos`; every server goes through all faults of the plan, in
order. They are ten seconds and more apart, since mmsup gives up a model that dies more than five times in a minute. A
server that has exited, or whose model stays unavailable, is restarted, as an operator would, and that is counted.
The exit code is 1 if a request to mmsup's healthy model failed, or any answer of mmsup's was wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import fault_plan
import machine
import tree
from client_view import ClientView, FaultEffects, client_view
from drivers.peer import Peer
from environment import version
from fault_plan import (
    CAP_BYTES,
    LIMIT_S,
    REQUEST_TIMEOUT_S,
    UNAVAILABLE_S,
    FaultPlan,
    faults_of,
    not_measured,
    run_plan,
)
from network import network
from progress import log_progress
from roster import BY_KEY, FAMOUS, OURS, PEERS, installed, split_names
from table import figure, milliseconds, table

from mmsup.supervisor.chaos.plan.catalog import select_faults

FAULTS = "segv", "abort", "exit", "raise", "oom", "hang", "spin", "leave", "slow_client", "garbage"
HEADS = [
    "server",
    "faults",
    "A sent",
    "A failed",
    "more while restarted by hand",
    "wrong bytes",
    "B failed between faults",
    "B back, s: p50 / worst",
    "B never back",
    "server ended",
    "A p99 before / under, ms",
    "note",
]
PeerResult = ClientView | str
"""The result of a server, or why it was not measured."""


def row(name: str, seen: PeerResult) -> list[str]:
    """A row of the first table."""
    if isinstance(seen, str):
        return [name, *["-"] * (len(HEADS) - 2), seen[:160]]
    done = sum(each.injected for each in seen.faults.values())
    harms = seen.back.count + seen.never
    counts = seen.sent, seen.failed, seen.failed_restarting, seen.wrong, seen.unexplained
    return [
        name,
        str(done),
        *(f"{each:,}" for each in counts),
        f"{_s(seen.back.p50)} / {_s(seen.back.worst)}",
        f"{seen.never} of {harms}",
        str(seen.ended),
        f"{milliseconds(seen.before)} / {milliseconds(seen.under)}",
        "",
    ]


def by_fault(names: Mapping[str, str], seen: Mapping[str, PeerResult], faults: tuple[str, ...]) -> str:
    """The second table: one row per server, one column per fault."""
    rows = [
        [names[key], *(_cell(found.faults.get(fault)) for fault in faults)]
        for key, found in seen.items()
        if isinstance(found, ClientView)
    ]
    return table(["server", *faults], rows)


def _cell(fault: FaultEffects | None) -> str:
    if fault is None:
        return "-"
    backs = [_s(max(fault.back_s))] if fault.back_s else []
    backs += [f"never{f' ({fault.never} of {fault.injected})' if fault.back_s else ''}"] if fault.never else []
    return " / ".join([f"{fault.failed_healthy:,}", *backs])


def _s(seconds: float) -> str:
    return "-" if math.isnan(seconds) else figure(seconds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=split_names, default=FAMOUS, help="which servers, by key")
    parser.add_argument("--faults", type=split_names, default=FAULTS, help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--seconds", type=float, default=120.0, help="without the time that a model was away (120)")
    parser.add_argument("--seed", type=int, default=42, help="of plan and arrivals (42)")
    parser.add_argument("--rate", type=float, default=50.0, help="requests to A in a second (50); B gets half")
    parser.add_argument(
        "--every-s", type=float, default=10.0, help="the least distance of faults; half more at most (10)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was seen")
    parser.add_argument("--histories", type=Path, metavar="DIR", help="write every request, a file for each server")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    options = parser.parse_args()
    for unknown in {*options.peers} - {*BY_KEY} | {*options.faults} - {*FAULTS}:
        parser.error(f"there is no {unknown!r}")
    if not fault_plan.has_memory_groups():
        parser.error(fault_plan.IMPOSSIBLE)
    return options


def compare(options: argparse.Namespace) -> dict[str, PeerResult]:
    """Run the plan against every server."""
    mlp, seen = network(), dict[str, PeerResult]()
    calm_s, every_s = options.seconds / 6, (options.every_s, options.every_s * 1.5)
    plan = FaultPlan(options.seed, calm_s, options.seconds - calm_s, every_s, options.rate, faults_of(options.faults))
    for peer in (each for each in PEERS if each.key in options.peers):
        log_progress(peer.name)
        try:
            seen[peer.key] = client_view(run_plan(peer, installed(peer), mlp, plan, _history_file(options, peer)))
        except* fault_plan.TROUBLE as errors:
            seen[peer.key] = not_measured(errors)
        log_progress("  ".join(row(peer.name, seen[peer.key])))
    return seen


def _history_file(options: argparse.Namespace, peer: Peer) -> Path | None:
    if not options.histories:
        return None
    options.histories.mkdir(parents=True, exist_ok=True)
    return Path(options.histories / f"{peer.key}.jsonl")


def facts_of(options: argparse.Namespace) -> dict[str, str]:
    """The conditions of the run."""
    return machine.describe_machine() | {
        "plan": f"seed {options.seed}, {options.seconds:g} s and the time that B was away; {', '.join(options.faults)}",
        "load": f"{options.rate:g} requests/s to A, half of it to B, by a schedule; {REQUEST_TIMEOUT_S:g} s to answer",
        "limits": f"{LIMIT_S:g} s for a run where the server can be told; {CAP_BYTES >> 30} GiB for the whole server",
        "never": f"not within {UNAVAILABLE_S:g} s, or the server had ended; then it was started again",
        "command": shlex.join(["python", "benchmarks/chaos_peers.py", *sys.argv[1:]]),
    }


def report(
    facts: Mapping[str, str], names: Mapping[str, str], seen: Mapping[str, PeerResult], faults: tuple[str, ...]
) -> str:
    """All of it, in Markdown."""
    rows = {each.name: each.row for each in select_faults(",".join(faults))}
    return "\n".join(
        [
            *(f"- {name}: {value}" for name, value in facts.items()),
            "",
            table(HEADS, [row(names[key], found) for key, found in seen.items()]),
            "",
            f"A failed / B back, s, at worst ({', '.join(f'{name} {number}' for name, number in rows.items())}):",
            "",
            by_fault(names, seen, faults),
            "",
        ]
    )


def main() -> None:
    options = arguments()
    tree.adopt_orphans()
    tree.end_as_exception()
    seen = compare(options)
    names = {key: f"{BY_KEY[key].name} {version(installed(BY_KEY[key]), BY_KEY[key].package)}" for key in seen}
    facts = facts_of(options)
    text = report(facts, names, seen, options.faults)
    print(text)
    if options.markdown:
        options.markdown.write_text(f"# The same chaos, side by side\n\n{ABOUT}\n\n{text}")
    if options.json:
        plain = {key: found if isinstance(found, str) else asdict(found) for key, found in seen.items()}
        options.json.write_text(json.dumps({"facts": facts, "servers": plain}, indent=1) + "\n")
    ours = seen.get(OURS)
    sys.exit(isinstance(ours, str) or (ours is not None and bool(ours.failed or ours.wrong)))


ABOUT = """\
Written by `benchmarks/chaos_peers.py`. Each server has two models that are alike. A is only asked; B obeys the harm
that its input names. All go through the same faults, drawn by `mmsup chaos`, in a memory control group each. Every
answer is held against the bytes that were sent. Times are from the harmful request to the first right answer after it.
A service manager would start a server again that has ended, so the wait for that is counted; what failed while a server
was started again by hand stands apart."""


if __name__ == "__main__":
    main()
