"""The same chaos against mmsup and its peers, side by side: what clients of a healthy model saw while another failed.

    python benchmarks/chaos_peers.py --seconds 120 --seed 42 [--peers mmsup,triton] [--faults segv] [--markdown FILE]

Plan, clients, payloads and history are those of `mmsup chaos`; every server goes through all faults of the plan, in
order. They are ten seconds and more apart, since mmsup gives up a model that dies more than five times in a minute. A
server that has ended, or whose model stays away, is started again, as an operator would, and that is counted.
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

import machine
import ordeal
import tree
from drivers.peer import Peer
from endured import ClientView, FaultEffects, client_view
from environment import version
from network import network
from ordeal import CAP_BYTES, LIMIT_S, REQUEST_TIMEOUT_S, UNAVAILABLE_S, FaultPlan, faults_of, not_measured, run_plan
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
"""What was seen, or why nothing was."""


def row(name: str, seen: PeerResult) -> list[str]:
    """One server in the first table."""
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
    """The second table: a server a row, a fault a column."""
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
    """What was asked for."""
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
    asked = parser.parse_args()
    for unknown in {*asked.peers} - {*BY_KEY} | {*asked.faults} - {*FAULTS}:
        parser.error(f"there is no {unknown!r}")
    if not ordeal.has_memory_groups():
        parser.error(ordeal.IMPOSSIBLE)
    return asked


def compare(asked: argparse.Namespace) -> dict[str, PeerResult]:
    """Every server through the same plan."""
    mlp, seen = network(), dict[str, PeerResult]()
    calm_s, every_s = asked.seconds / 6, (asked.every_s, asked.every_s * 1.5)
    plan = FaultPlan(asked.seed, calm_s, asked.seconds - calm_s, every_s, asked.rate, faults_of(asked.faults))
    for peer in (each for each in PEERS if each.key in asked.peers):
        log_progress(peer.name)
        try:
            seen[peer.key] = client_view(run_plan(peer, installed(peer), mlp, plan, _history_file(asked, peer)))
        except* ordeal.TROUBLE as errors:
            seen[peer.key] = not_measured(errors)
        log_progress("  ".join(row(peer.name, seen[peer.key])))
    return seen


def _history_file(asked: argparse.Namespace, peer: Peer) -> Path | None:
    if not asked.histories:
        return None
    asked.histories.mkdir(parents=True, exist_ok=True)
    return Path(asked.histories / f"{peer.key}.jsonl")


def facts_of(asked: argparse.Namespace) -> dict[str, str]:
    """What a reader has to know."""
    return machine.describe_machine() | {
        "plan": f"seed {asked.seed}, {asked.seconds:g} s and the time that B was away; {', '.join(asked.faults)}",
        "load": f"{asked.rate:g} requests/s to A, half of it to B, by a schedule; {REQUEST_TIMEOUT_S:g} s to answer",
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
    """As the arguments say."""
    asked = arguments()
    tree.adopt_orphans()
    tree.end_as_exception()
    seen = compare(asked)
    names = {key: f"{BY_KEY[key].name} {version(installed(BY_KEY[key]), BY_KEY[key].package)}" for key in seen}
    facts = facts_of(asked)
    text = report(facts, names, seen, asked.faults)
    print(text)
    if asked.markdown:
        asked.markdown.write_text(f"# The same chaos, side by side\n\n{ABOUT}\n\n{text}")
    if asked.json:
        plain = {key: found if isinstance(found, str) else asdict(found) for key, found in seen.items()}
        asked.json.write_text(json.dumps({"facts": facts, "servers": plain}, indent=1) + "\n")
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
