"""What reaches the neighbours: model A under load while model B of the same server fails, for mmsup and its peers.

    python benchmarks/isolation.py [--peers mmsup,triton,mosec] [--harms segv,hang] [--json FILE] [--markdown FILE]

Each fault meets a server that was started for it, in a memory control group of its own: what no cap inside the server
stops, the kernel stops there. A server that has a limit for hung runs, or a switch for restarts, has it on.
The exit code is 1 if a request to mmsup's healthy model failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import machine
import numpy as np
import tree
from drivers.peer import Peer
from environment import InstallError, version
from neighbours import Plan, Seen, watch
from network import Network, network
from progress import say
from roster import BY_KEY, OURS, PEERS, installed
from server import ServeError, Server
from table import figure, table
from wire import Request
from work import Array, Scene

HARMS = {"segv": 1000001, "abort": 1000002, "memory": 1000003, "hang": 1000004, "hang-gil": 1000005}
"""By the number that apps/arithmetic.py obeys."""
WORDS = {
    "segv": "segmentation fault",
    "abort": "abort",
    "memory": "too much memory",
    "hang": "hang",
    "hang-gil": "hang, GIL held",
}
LIMIT_S = 5.0
CAP_BYTES = 4 << 30
GROUPS = Path("/sys/fs/cgroup/memory")
SCENE = Scene("isolation", "harmful", (16,), (), models=2, limit_s=LIMIT_S)
ON = "segv", "abort", "memory", "hang", "hang-gil"
DEFAULT = "mmsup", "triton", "torchserve", "litserve", "mlserver", "mosec"


@contextlib.contextmanager
def group() -> Iterator[list[str]]:
    """A memory control group (v1, as root) for one server: the words before its command that put it there."""
    folder = Path(tempfile.mkdtemp(prefix="mmsup_bench_", dir=GROUPS))
    try:
        (folder / "memory.limit_in_bytes").write_text(str(CAP_BYTES))
        yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """What ran there has ended; the kernel may need a moment to see it."""
    limit = time.monotonic() + 10
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.05)


def fault(peer: Peer, harm: str, environment: Path, mlp: Network, asked: argparse.Namespace) -> Seen:
    """One server, one fault."""
    with group() as before, Server(peer, SCENE, environment, mlp, before) as server:
        server.wait_until_right()
        healthy, faulty = SCENE.names
        plan = Plan(
            port=server.port,
            healthy=_requests(peer, healthy),
            faulty=_requests(peer, faulty),
            fatal=peer.request(SCENE, faulty, _fatal(harm)),
            right=lambda place, body: not server.fault(place * SCENE.models, body),
            rate=asked.rate,
            before_s=asked.before_s,
            watch_s=asked.watch_s,
        )
        return asyncio.run(watch(plan))


def _requests(peer: Peer, model: str) -> list[Request]:
    return [peer.request(SCENE, model, x) for x in SCENE.inputs()]


def _fatal(harm: str) -> Array:
    x = np.zeros(SCENE.shape, np.float32)
    x[0] = HARMS[harm]
    return x


def line(name: str, harm: str, seen: Seen | str) -> list[str]:
    """A row of the table."""
    if isinstance(seen, str):
        return [name, WORDS[harm], "-", "-", "-", "-", "-", seen[:120]]
    kinds = ", ".join(sorted(set(seen.failures)))
    note = "" if seen.serves_after else "A does not answer any more"
    return [
        name,
        WORDS[harm],
        f"{seen.sent:,}",
        f"{len(seen.failures):,}",
        "never" if seen.back_s is None else f"{seen.back_s:.2f}",
        "never" if seen.told_s is None else f"{seen.told_s:.2f}",
        f"{_p99_ms(seen.before_s)} / {_p99_ms(seen.during_s)}",
        "; ".join(each for each in (note, kinds) if each),
    ]


def _p99_ms(latencies_s: Sequence[float]) -> str:
    return figure(statistics.quantiles(latencies_s, n=100)[98] * 1e3) if len(latencies_s) > 200 else "-"


HEADS = [
    "server",
    "B's fault",
    "A sent",
    "A failed",
    "B back, s",
    "B's caller told, s",
    "A p99 before / after, ms",
    "note",
]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers", type=lambda text: text.split(","), default=list(DEFAULT), help="which servers, by key"
    )
    parser.add_argument("--harms", type=lambda text: text.split(","), default=list(ON), help=f"of {', '.join(ON)}")
    parser.add_argument("--rate", type=float, default=100.0, help="requests to A in a second (100)")
    parser.add_argument("--before-s", type=float, default=3.0, help="load before the fault (3)")
    parser.add_argument("--watch-s", type=float, default=20.0, help="how long B may take to come back (20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was seen")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed")
    asked = parser.parse_args()
    for unknown in {*asked.peers} - {*BY_KEY} | {*asked.harms} - {*HARMS}:
        parser.error(f"there is no {unknown!r}")
    if not os.access(GROUPS, os.W_OK):
        parser.error("a memory control group (cgroup v1, as root) is needed: some servers have no cap of their own")
    return asked


def compare(asked: argparse.Namespace) -> dict[tuple[str, str], Seen | str]:
    """Every fault on every server, fault by fault."""
    mlp, seen = network(), dict[tuple[str, str], Seen | str]()
    for peer in (each for each in PEERS if each.key in asked.peers):
        for harm in asked.harms:
            try:
                seen[peer.key, harm] = fault(peer, harm, installed(peer), mlp, asked)
            except (ServeError, InstallError, OSError, RuntimeError) as error:
                seen[peer.key, harm] = f"not measured: {error}"
            say("  ".join(line(peer.name, harm, seen[peer.key, harm])))
    return seen


def main() -> None:
    """As the arguments say."""
    asked = arguments()
    tree.adopt_orphans()
    tree.end_as_exception()
    seen = compare(asked)
    names = {key: f"{BY_KEY[key].name} {version(installed(BY_KEY[key]), BY_KEY[key].package)}" for key, _ in seen}
    facts = machine.described() | {
        "load": f"{asked.rate:g} requests/s to A, by a schedule; an answer that takes more than 5 s has failed",
        "limits": f"{LIMIT_S:g} s for a run where the server can be told; {CAP_BYTES >> 30} GiB for the whole server",
        "never": f"not within {asked.watch_s:g} s",
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
    sys.exit(any(isinstance(found, str) or bool(found.failures) for found in ours))


if __name__ == "__main__":
    main()
