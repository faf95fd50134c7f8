"""What reaches the neighbours: model A under load while model B of the same server fails, for mmsup and its peers.

    python benchmarks/isolation.py [--peers mmsup,triton,mosec] [--harms segv,hang] [--json FILE] [--markdown FILE]

One fault, and a server that was started for it; chaos_peers.py has many in a row. A server that has a limit for hung
runs, or a switch for restarts, has it on. The exit code is 1 if a request to mmsup's healthy model failed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import machine
import ordeal
import tree
from drivers.peer import Peer
from endured import ClientView, client_view
from environment import version
from network import OnnxNetwork, network
from ordeal import CAP_BYTES, LIMIT_S, REQUEST_TIMEOUT_S, UNAVAILABLE_S, FaultPlan, faults_of, not_measured, run_plan
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
    *("server", "B's fault", "A sent", "A failed", "B back, s", "B's caller told, s", "A p99 before / after, ms"),
    "note",
]


def run_fault(peer: Peer, harm: str, mlp: OnnxNetwork, rate: float) -> ClientView:
    """One server, one fault."""
    plan = FaultPlan(SEED, BEFORE_S, AFTER_S, (2 * AFTER_S, 2 * AFTER_S), rate, faults_of([harm]))
    return client_view(run_plan(peer, installed(peer), mlp, plan))


def line(name: str, harm: str, seen: ClientView | str) -> list[str]:
    """A row of the table."""
    if isinstance(seen, str):
        return [name, FAULT_NAMES[harm], "-", "-", "-", "-", "-", seen[:120]]
    (found,) = seen.faults.values()
    return [
        name,
        FAULT_NAMES[harm],
        f"{seen.sent:,}",
        f"{seen.failed:,}",
        figure(found.back_s[0]) if found.back_s else "never",
        figure(found.told_s[0]) if found.told_s else "never",
        f"{milliseconds(seen.before)} / {milliseconds(seen.under)}",
        "the server ended" if seen.ended else "",
    ]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=split_names, default=FAMOUS, help="which servers, by key")
    parser.add_argument("--harms", type=split_names, default=tuple(FAULT_NAMES), help=f"of {', '.join(FAULT_NAMES)}")
    parser.add_argument("--rate", type=float, default=100.0, help="requests to A in a second (100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was seen")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    asked = parser.parse_args()
    for unknown in {*asked.peers} - {*BY_KEY} | {*asked.harms} - {*FAULT_NAMES}:
        parser.error(f"there is no {unknown!r}")
    if not ordeal.has_memory_groups():
        parser.error(ordeal.IMPOSSIBLE)
    return asked


def compare(asked: argparse.Namespace) -> dict[tuple[str, str], ClientView | str]:
    """Every fault on every server, fault by fault."""
    mlp, seen = network(), dict[tuple[str, str], ClientView | str]()
    for peer in (each for each in PEERS if each.key in asked.peers):
        for harm in asked.harms:
            try:
                seen[peer.key, harm] = run_fault(peer, harm, mlp, asked.rate)
            except* ordeal.TROUBLE as errors:
                seen[peer.key, harm] = not_measured(errors)
            log_progress("  ".join(line(peer.name, harm, seen[peer.key, harm])))
    return seen


def main() -> None:
    """As the arguments say."""
    asked = arguments()
    tree.adopt_orphans()
    tree.end_as_exception()
    seen = compare(asked)
    names = {key: f"{BY_KEY[key].name} {version(installed(BY_KEY[key]), BY_KEY[key].package)}" for key, _ in seen}
    facts = machine.describe_machine() | {
        "load": f"{asked.rate:g} requests/s to A, half of it to B, by a schedule; {REQUEST_TIMEOUT_S:g} s to answer",
        "limits": f"{LIMIT_S:g} s for a run where the server can be told; {CAP_BYTES >> 30} GiB for the whole server",
        "never": f"not within {UNAVAILABLE_S:g} s, or the server had ended",
        "command": shlex.join(["python", "benchmarks/isolation.py", *sys.argv[1:]]),
    }
    rows = [line(names[key], harm, found) for (key, harm), found in seen.items()]
    text = "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n\n" + table(HEADS, rows) + "\n"
    print(text)
    if asked.markdown:
        asked.markdown.write_text(f"# What reaches the neighbours\n\nWritten by `benchmarks/isolation.py`.\n\n{text}")
    if asked.json:
        plain = [
            {"server": key, "harm": harm, "seen": found if isinstance(found, str) else asdict(found)}
            for (key, harm), found in seen.items()
        ]
        asked.json.write_text(json.dumps({"facts": facts, "faults": plain}, indent=1) + "\n")
    ours = [found for (key, _), found in seen.items() if key == OURS]
    sys.exit(any(isinstance(found, str) or bool(found.failed) for found in ours))


if __name__ == "__main__":
    main()
