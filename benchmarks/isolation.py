"""Measures isolation: model A under load while model B of the same server fails, for mmsup and other servers.

    python benchmarks/isolation.py [--peers mmsup,triton,mosec] [--harms segv,hang] [--json FILE] [--markdown FILE]

Each fault gets a freshly started server; chaos_peers.py injects many in a row. A server that has a limit for hung
runs, or a switch for restarts, has it on. The exit code is 1 if a request to mmsup's healthy model failed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import fault_plan
import machine
import tree
from client_view import ClientView, client_view
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
from network import OnnxNetwork, network
from progress import log_progress
from roster import BY_KEY, FAMOUS, OURS, PEERS, installed, split_names
from table import figure, milliseconds, table

FAULT_NAMES = {
    "segv": "segmentation fault",
    "abort": "abort",
    "oom": "too much memory",
    "hang": "hang",
    "spin": "hang, GIL held",
}
SEED = 1
BEFORE_S, AFTER_S = 3.0, 2.0
HEADS = [
    *("server", "B's fault", "A sent", "A failed", "B back, s", "B's caller answered, s", "A p99 before / after, ms"),
    "note",
]


def run_fault(peer: Peer, fault_name: str, mlp: OnnxNetwork, rate: float) -> ClientView:
    """One fault on one server."""
    plan = FaultPlan(SEED, BEFORE_S, AFTER_S, (2 * AFTER_S, 2 * AFTER_S), rate, faults_of([fault_name]))
    return client_view(run_plan(peer, installed(peer), mlp, plan))


def line(name: str, fault_name: str, seen: ClientView | str) -> list[str]:
    if isinstance(seen, str):
        return [name, FAULT_NAMES[fault_name], "-", "-", "-", "-", "-", seen[:120]]
    (found,) = seen.faults.values()
    return [
        name,
        FAULT_NAMES[fault_name],
        f"{seen.sent:,}",
        f"{seen.failed:,}",
        figure(found.back_s[0]) if found.back_s else "never",
        figure(found.told_s[0]) if found.told_s else "never",
        f"{milliseconds(seen.before)} / {milliseconds(seen.under)}",
        "the server ended" if seen.ended else "",
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=split_names, default=FAMOUS, help="which servers, by key")
    parser.add_argument("--harms", type=split_names, default=tuple(FAULT_NAMES), help=f"of {', '.join(FAULT_NAMES)}")
    parser.add_argument("--rate", type=float, default=100.0, help="requests to A in a second (100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was seen")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    options = parser.parse_args()
    for unknown in {*options.peers} - {*BY_KEY} | {*options.harms} - {*FAULT_NAMES}:
        parser.error(f"there is no {unknown!r}")
    if not fault_plan.has_memory_groups():
        parser.error(fault_plan.IMPOSSIBLE)
    return options


def compare(options: argparse.Namespace) -> dict[tuple[str, str], ClientView | str]:
    """Every fault on every server."""
    mlp, seen = network(), dict[tuple[str, str], ClientView | str]()
    for peer in (each for each in PEERS if each.key in options.peers):
        for fault_name in options.harms:
            try:
                seen[peer.key, fault_name] = run_fault(peer, fault_name, mlp, options.rate)
            except* fault_plan.TROUBLE as errors:
                seen[peer.key, fault_name] = not_measured(errors)
            log_progress("  ".join(line(peer.name, fault_name, seen[peer.key, fault_name])))
    return seen


def main() -> None:
    options = arguments()
    tree.adopt_orphans()
    tree.end_as_exception()
    seen = compare(options)
    names = {key: f"{BY_KEY[key].name} {version(installed(BY_KEY[key]), BY_KEY[key].package)}" for key, _ in seen}
    facts = machine.describe_machine() | {
        "load": f"{options.rate:g} requests/s to A, half of it to B, by a schedule; {REQUEST_TIMEOUT_S:g} s to answer",
        "limits": f"{LIMIT_S:g} s for a run where the server can be told; {CAP_BYTES >> 30} GiB for the whole server",
        "never": f"not within {UNAVAILABLE_S:g} s, or the server had ended",
        "command": shlex.join(["python", "benchmarks/isolation.py", *sys.argv[1:]]),
    }
    rows = [line(names[key], fault_name, found) for (key, fault_name), found in seen.items()]
    text = "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n\n" + table(HEADS, rows) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(f"# What reaches the neighbours\n\nWritten by `benchmarks/isolation.py`.\n\n{text}")
    if options.json:
        plain = [
            {"server": key, "harm": fault_name, "seen": found if isinstance(found, str) else asdict(found)}
            for (key, fault_name), found in seen.items()
        ]
        options.json.write_text(json.dumps({"facts": facts, "faults": plain}, indent=1) + "\n")
    ours = [found for (key, _), found in seen.items() if key == OURS]
    sys.exit(any(isinstance(found, str) or bool(found.failed) for found in ours))


if __name__ == "__main__":
    main()
