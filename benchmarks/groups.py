"""What co-location groups save: small models in one process against one process for each.

python benchmarks/groups.py [--models 10] [--rounds 7] [--run-s 2] [--json FILE]

Two servers run side by side, one with all models in one group, and take turns. Memory is the sum of PSS of all workers
once each model has answered. CPU is that of gateway, workers and all others per request, 8 models in turn over 32
connections that each ask again as soon as they have their reply (16 floats, binary); the client is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from start import Server, cpu_s

CONNECTIONS = 32
IN_TURN = 8


class GroupedServer(Server):
    """Small models of numpy, all in one group or each by itself."""

    def __init__(self, *, is_grouped: bool, models: int) -> None:
        super().__init__("none")
        self.names = [f"m{number}" for number in range(models)]
        for name in self.names:
            self.write(name, "numpy")
            if is_grouped:
                with (self.repository / name / "mmsup.yaml").open("a") as file:
                    file.write("group: small\n")
            self.load(name)
            self.ask(name)

    def requests(self) -> list[bytes]:
        """One of each of the models that are asked in turn."""
        x = np.arange(16, dtype=np.float32)
        given = {"name": "x", "datatype": "FP32", "shape": [16], "parameters": {"binary_data_size": x.nbytes}}
        head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        fields = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + x.nbytes}\r\n\r\n"
        return [
            f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: localhost\r\n{fields}".encode() + head + x.tobytes()
            for name in self.names[:IN_TURN]
        ]

    def address(self) -> tuple[str, int]:
        host, _, port = self.ctl("status")["addresses"]["http"].rpartition(":")
        return host, int(port)

    def used_s(self) -> dict[str, float]:
        """CPU time so far, by role."""
        found: dict[str, float] = {}
        for pid, role in {(each["pid"], each["role"]) for each in self.ctl("ps")["processes"] if each["pid"]}:
            found[role] = found.get(role, 0.0) + cpu_s(pid)
        return found

    def memory_mb(self) -> float:
        return sum(pss_bytes_of(pid) for pid in set(self.pids("worker"))) / 1e6


def pss_bytes_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


async def _ask(address: tuple[str, int], requests: Sequence[bytes], first: int, end_s: float) -> int:
    reader, writer = await asyncio.open_connection(*address)
    count = 0
    while time.monotonic() < end_s:
        writer.write(requests[(first + count) % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        size = next(each for each in head.lower().split(b"\r\n") if each.startswith(b"content-length:"))
        await reader.readexactly(int(size.split(b":")[1]))
        count += 1
    writer.close()
    return count


async def load(server: GroupedServer, seconds: float) -> int:
    """How many requests were answered."""
    end_s, requests, address = time.monotonic() + seconds, server.requests(), server.address()
    counts = await asyncio.gather(*(_ask(address, requests, number, end_s) for number in range(CONNECTIONS)))
    return sum(counts)


def measure(server: GroupedServer, seconds: float) -> dict[str, float]:
    """CPU per request in microseconds, by role."""
    asyncio.run(load(server, seconds / 4))
    before, count = server.used_s(), asyncio.run(load(server, seconds))
    after = server.used_s()
    used = {role: (after[role] - before[role]) / count * 1e6 for role in ("gateway", "worker")}
    return {**used, "all": (sum(after.values()) - sum(before.values())) / count * 1e6}


@contextlib.contextmanager
def running(*, is_grouped: bool, models: int) -> Iterator[GroupedServer]:
    server = GroupedServer(is_grouped=is_grouped, models=models)
    try:
        yield server
    finally:
        server.close()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run-s", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    with (
        running(is_grouped=True, models=options.models) as grouped,
        running(is_grouped=False, models=options.models) as apart,
    ):
        assert len(set(grouped.pids("worker"))) == 1
        memory = grouped.memory_mb(), apart.memory_mb()
        for _ in range(options.rounds):
            rounds.append((measure(grouped, options.run_s), measure(apart, options.run_s)))
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, medians of {options.rounds} rounds\n")
    print("| | one group | apart | apart / group |\n|---|---|---|---|")
    print(f"| PSS of the workers of {options.models} models, MB | {memory[0]:.1f} | {memory[1]:.1f} | ", end="")
    print(f"{memory[1] / memory[0]:.1f} |")
    for name in rounds[0][0]:
        pairs = [(mine[name], other[name]) for mine, other in rounds]
        one, many = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratio = statistics.median(other / mine for mine, other in pairs)
        print(f"| CPU per request, {name}, µs | {one:.1f} | {many:.1f} | {ratio:.2f} |")
    if options.json:
        options.json.write_text(json.dumps({"memory_mb": memory, "rounds": rounds}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
