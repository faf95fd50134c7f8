"""How long clients wait when a process of mmsup is killed: gateway, brain, worker, alone and beside busy models.

    python benchmarks/restart.py [--rounds K] [--busy N] [--gateways N] [--json] [FLAG OF mmsup serve …]

Each round starts a server, since restarts soon after another wait on purpose, and kills one of each in turn: a
gateway (until a new connection has an answer to an inference), the brain (until the next one answers `ctl status`), a
worker (until its model answers). With two gateways a neighbour keeps calling a second model over the one that lives:
what its calls took before the kill, and from there until what was started has come to rest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from engines.build import write_fault_model, write_identity_onnx
from harness.server import Server, eventually, serving
from mmsup.supervisor.cli.control_client import NoServer, ServerRefused

WINDOW_S = 4.0
"""How long a neighbour is looked at: a gateway that starts, and what follows it."""
ROW = ("FP32", [4], [1.0, 2.0, 3.0, 4.0])
Times = dict[str, list[float]]


class BusyClient:
    """Calls its model over one connection until the block is left."""

    def __init__(self, server: Server) -> None:
        self._http = server.http()
        self._http.infer("neighbour", x=ROW)
        self.port: int = self._http.connection.sock.getsockname()[1]
        self.calls: list[tuple[float, float]] = []
        """When each began, and what it took."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="neighbour")

    def __enter__(self) -> BusyClient:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._http.close()

    def took_ms(self, begin_s: float, end_s: float) -> list[float]:
        """Of the calls that began in between."""
        return [took * 1e3 for began, took in self.calls if begin_s <= began < end_s]

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            began = time.monotonic()
            status, _ = self._http.infer("neighbour", x=ROW)
            assert status == 200
            self.calls.append((began, time.monotonic() - began))


def is_served(server: Server, model: str) -> bool:
    """Whether a connection of its own is answered; one that is cut before is no answer."""
    http = server.http()
    try:
        return http.infer(model, x=ROW)[0] == 200
    except (OSError, HTTPException):
        return False
    finally:
        http.close()


def recovery_ms(pid: int, until: Callable[[], object]) -> float:
    """From the kill of a process to what shows that another one does its work."""
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    eventually(until, f"another one does the work of {pid}")
    return (time.monotonic() - began) * 1e3


def is_other_controller(server: Server, old: int) -> bool:
    """Whether another brain than this one answers."""
    try:
        return bool(server.status()["brain"]["pid"] != old)
    except (NoServer, ServerRefused):
        return False


def gateway_without(server: Server, port: int) -> int:
    """The process of a gateway that does not hold the connection from this port of ours."""
    for each in server.status()["gateways"]:
        ends = psutil.Process(each["pid"]).net_connections("tcp")
        if not any(end.raddr and end.raddr.port == port for end in ends):
            return int(each["pid"])
    raise AssertionError("all gateways hold the same connection")


def kill_gateway(server: Server, times: Times) -> None:
    """The first one, with nobody beside it."""
    pid = server.status()["gateways"][0]["pid"]
    times["gateway"].append(recovery_ms(pid, lambda: is_served(server, "one")))


def kill_beside(server: Server, times: Times) -> None:
    """A gateway that a neighbour does not use."""
    with BusyClient(server) as neighbour:
        began = time.monotonic()
        time.sleep(WINDOW_S)
        killed = time.monotonic()
        pid = gateway_without(server, neighbour.port)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: all(each["pid"] not in (pid, None) for each in server.status()["gateways"]), "two gateways")
        time.sleep(max(0.0, killed + WINDOW_S - time.monotonic()))
        times["neighbour, before"] += neighbour.took_ms(began, killed)
        times["neighbour, while a gateway starts"] += neighbour.took_ms(killed, killed + WINDOW_S)


def one_round(repository: Path, flags: list[str], busy: int, times: Times, gateways: int) -> None:
    """A server, and one kill of each."""
    with serving(repository, *flags) as server:
        callers = [server.http() for _ in range(busy)]
        for number, each in enumerate(callers):
            spin = {"x": ROW, "mode": ("BYTES", [1], ["spin"])}
            inputs = [{"name": k, "datatype": t, "shape": s, "data": d} for k, (t, s, d) in spin.items()]
            each.connection.request("POST", f"/v2/models/busy{number}/infer", json.dumps({"inputs": inputs}))
        eventually(lambda: len(set(server.status()["spare_gateways"].values())) == 1, "the spare, if one is wanted")
        time.sleep(1.0)
        if gateways > 1:
            kill_beside(server, times)
        else:
            kill_gateway(server, times)
        brain = server.status()["brain"]["pid"]
        times["brain"].append(recovery_ms(brain, lambda: is_other_controller(server, brain)))
        times["worker"].append(recovery_ms(server.pid("one"), lambda: is_served(server, "one")))
        for each in callers:
            each.close()


def summary(times: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(times)
    return {
        "n": len(ordered),
        "p50_ms": round(statistics.median(ordered), 1),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)], 1),
        "max_ms": round(ordered[-1], 1),
    }


def main() -> None:
    """As the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen, flags = parser.parse_known_args()
    names = ("gateway", "neighbour, before", "neighbour, while a gateway starts", "brain", "worker")
    times: Times = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as folder:
        for name in ("one", "neighbour"):
            write_identity_onnx(Path(folder), name)
        for number in range(chosen.busy):
            write_fault_model(Path(folder), f"busy{number}", hang_limit="600s")
        for _ in range(chosen.rounds):
            one_round(Path(folder), [f"--gateways={chosen.gateways}", *flags], chosen.busy, times, chosen.gateways)
    found = {name: summary(each) for name, each in times.items() if each}
    if chosen.json:
        print(json.dumps({"busy": chosen.busy, "gateways": chosen.gateways, "flags": flags, **found}, indent=1))
        return
    for name, each in found.items():
        figures = "  ".join(f"{what} {each[what + '_ms']:8.1f} ms" for what in ("p50", "p99", "max"))
        print(f"{name:34} n {each['n']:5.0f}  {figures}")


if __name__ == "__main__":
    main()
