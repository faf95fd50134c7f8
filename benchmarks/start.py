"""What one more model costs a running server, forked against executed: time to load it over HTTP, CPU time, memory.

python benchmarks/start.py [--rounds 20] [--many 100] [--kinds numpy,torch,onnx] [--peers mosec] [--json FILE]

Two servers run side by side, one with `--zygotes eager` and one with `--zygotes none`, and take turns: so both meet
the machine in the same state. Time is from the load request to its answer, and the model is asked once after that. CPU
is that of keeper, controller, gateway, zygote and worker until then. Memory is the sum of PSS of all zygotes and
workers, per added worker: what they share counts once. Of other servers (--peers), which are installed on first use, it
is the PSS of all processes with eight small numpy models less that with two, a sixth of it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tree
from network import network
from roster import BY_KEY, installed
from server import Server as PeerServer
from work import SCENES

from mmsup.supervisor.cli.ctl import control_client

START_S = 120.0
FEW, MANY = 2, 8
POLL_S = 0.01
SHOWN_EVENTS = 20
CODE = {
    "numpy": 'class Model:\n    def infer(self, inputs):\n        return {"y": inputs["x"] * 2 + 1}\n',
    "torch": "import torch\n\nclass Model:\n    def infer(self, inputs):\n"
    '        return {"y": (torch.from_numpy(inputs["x"]) * 2 + 1).numpy()}\n',
}
TENSORS = "inputs: [{name: x, datatype: FP32, shape: [16]}]\noutputs: [{name: y, datatype: FP32, shape: [16]}]\n"
IMPORTS = {"numpy": "numpy", "torch": "torch", "onnx": "onnxruntime"}


@dataclass
class Samples:
    """Of one kind of model and one way to start it, per added model."""

    load_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    forked: int = 0
    pss_mb: float = 0.0
    """Of one more worker, over all that were added."""


class Server:
    """One running server of this installation, in a temporary folder."""

    def __init__(self, zygotes: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="mmsup_bench_"))
        self.repository, self._run = self.root / "models", self.root / "run"
        self.repository.mkdir()
        command = [sys.executable, "-m", "mmsup.supervisor.cli", "serve", "--model-repository", str(self.repository)]
        command += ["--model-control-mode", "explicit", "--http-port", "0", "--grpc-port", "-1", "--metrics-port", "0"]
        command += ["--runtime-dir", str(self._run), "--state-dir", str(self.root / "state"), "--zygotes", zygotes]
        self._log = (self.root / "log").open("wb")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        self._http = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            with contextlib.suppress(control_client.NoServer, control_client.ServerRefused):
                status = self.ctl("status")
                if status["ready"]:
                    host, _, port = status["addresses"]["http"].rpartition(":")
                    self.address = host, int(port)
                    return http.client.HTTPConnection(*self.address, timeout=START_S)
            time.sleep(POLL_S)
        raise SystemExit(f"the server did not start: {(self.root / 'log').read_text()}")

    def ctl(self, verb: str, **arguments: object) -> Any:  # JSON
        return control_client.call_server(str(self._run), verb, arguments)

    def await_zygote(self, imports: str) -> None:
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            if any(each["imports"] == imports and each["state"] == "ready" for each in self.ctl("status")["zygotes"]):
                return
            time.sleep(POLL_S)
        raise SystemExit(f"no zygote for {imports}")

    def write(self, name: str, kind: str) -> None:
        folder = self.repository / name / "1"
        folder.mkdir(parents=True)
        if kind == "onnx":
            write_onnx(folder / "model.onnx")
            return
        (folder / "model.py").write_text(CODE[kind])
        preload = "preload: torch\n" if kind == "torch" else ""
        (self.repository / name / "mmsup.yaml").write_text(TENSORS + preload)

    def load(self, name: str) -> None:
        """Over HTTP, and then its first answer."""
        self._post(f"/v2/repository/models/{name}/load", {})

    def ask(self, name: str) -> None:
        x = {"name": "x", "datatype": "FP32", "shape": [16], "data": list(range(16))}
        reply = self._post(f"/v2/models/{name}/infer", {"inputs": [x]})
        assert reply["outputs"][0]["data"] == [2.0 * each + 1 for each in range(16)], reply

    def _post(self, path: str, body: object) -> Any:  # JSON
        self._http.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = self._http.getresponse()
        text = response.read()
        if response.status != 200:
            events = "\n".join(json.dumps(each) for each in self.ctl("events", count=SHOWN_EVENTS)["events"])
            raise SystemExit(f"{path}: {response.status} {text.decode(errors='replace')}\nthe last events:\n{events}")
        return json.loads(text) if text else None

    def pids(self, *roles: str) -> list[int]:
        rows = self.ctl("ps")["processes"]
        return [each["pid"] for each in rows if each["pid"] and (not roles or each["role"] in roles)]

    def cpu_s(self) -> float:
        return sum(cpu_s(pid) for pid in self.pids())

    def pss_mb(self) -> float:
        return sum(pss_bytes(pid) for pid in self.pids("worker", "zygote")) / 1e6

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(START_S)
        self._log.close()
        shutil.rmtree(self.root)


def write_onnx(path: Path) -> None:
    """y = 2 x + 1."""
    import onnx  # noqa: PLC0415 - for one kind of model only
    from onnx import TensorProto, helper  # noqa: PLC0415

    two, one = (
        helper.make_tensor(name, TensorProto.FLOAT, [1], [value]) for name, value in (("two", 2.0), ("one", 1.0))
    )
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in ("x", "y")]
    nodes = [helper.make_node("Mul", ["x", "two"], ["z"]), helper.make_node("Add", ["z", "one"], ["y"])]
    graph = helper.make_graph(nodes, "line", tensors[:1], tensors[1:], [two, one])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=9), path)


def cpu_s(pid: int) -> float:
    """Of a process with all its threads, in seconds; what the kernel counts of each thread that lives."""
    total = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


def pss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure(servers: dict[str, Server], kind: str, rounds: int) -> dict[str, Samples]:
    """Add models to both servers in turn; two more before, that are not counted."""
    found = {way: Samples() for way in servers}
    for way, server in servers.items():
        for number in range(2):
            name = f"{kind}_before_{number}"
            server.write(name, kind)
            server.load(name)
        if way == "zygote":
            server.await_zygote(IMPORTS[kind])
    before = {way: server.pss_mb() for way, server in servers.items()}
    for number in range(rounds):
        for way, server in servers.items():
            name, samples = f"{kind}_{number}", found[way]
            server.write(name, kind)
            used_s, began_s = server.cpu_s(), time.perf_counter()
            server.load(name)
            samples.load_ms.append((time.perf_counter() - began_s) * 1e3)
            server.ask(name)
            samples.cpu_ms.append((server.cpu_s() - used_s) * 1e3)
            samples.forked += server.ctl("show", name=name)["instances"][0]["start"].startswith("forked")
    for way, server in servers.items():
        found[way].pss_mb = (server.pss_mb() - before[way]) / rounds
    return found


def from_nothing(zygotes: str, count: int) -> tuple[float, float]:
    """Seconds until as many small models are ready that are loaded one after the other, and their memory in MB."""
    with running(zygotes) as ours:
        for number in range(count):
            ours.write(f"m{number}", "numpy")
        began_s = time.perf_counter()
        for number in range(count):
            ours.load(f"m{number}")
        return time.perf_counter() - began_s, ours.pss_mb()


def peer_memory_mb(key: str) -> float:
    """PSS of one more small numpy model of another server."""
    found = {}
    for count in (FEW, MANY):
        peer, scene = BY_KEY[key], replace(SCENES[0], models=count)
        with PeerServer(peer, scene, installed(peer), network(), ()) as other:
            other.wait_until_correct()
            found[count] = sum(pss_bytes(pid) for pid in tree.descendants()) / 1e6
    return (found[MANY] - found[FEW]) / (MANY - FEW)


@contextlib.contextmanager
def running(zygotes: str) -> Iterator[Server]:
    server = Server(zygotes)
    try:
        yield server
    finally:
        server.close()


def table(kind: str, found: dict[str, Samples]) -> str:
    forked, executed = found["zygote"], found["exec"]
    rows = [
        ("load over HTTP, ms, median", statistics.median(forked.load_ms), statistics.median(executed.load_ms)),
        ("CPU to the first answer, ms", statistics.median(forked.cpu_ms), statistics.median(executed.cpu_ms)),
        ("PSS of one more, MB", forked.pss_mb, executed.pss_mb),
    ]
    lines = [
        f"{kind}: {forked.forked} of {len(forked.load_ms)} were forked",
        "| | zygote | exec | ratio |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {name} | {a:.1f} | {b:.1f} | {b / a:.1f} |" for name, a, b in rows)])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--many", type=int, default=100)
    parser.add_argument("--kinds", default="numpy,torch,onnx")
    parser.add_argument("--peers", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"cores": os.cpu_count(), "load_average": os.getloadavg()}  # JSON
    for kind in filter(None, options.kinds.split(",")):
        with running("eager") as zygote, running("none") as executed:
            found = measure({"zygote": zygote, "exec": executed}, kind, options.rounds)
        print(table(kind, found), flush=True)
        result[kind] = {way: asdict(each) for way, each in found.items()}
    if options.many:
        for way, zygotes in (("zygote", "auto"), ("exec", "none")):
            took_s, pss_mb = from_nothing(zygotes, options.many)
            print(f"{options.many} numpy models from nothing, {way}: {took_s:.1f} s, {pss_mb:.0f} MB", flush=True)
            result[f"many_{way}"] = {"seconds": took_s, "pss_mb": pss_mb}
    tree.adopt_orphans()
    for key in filter(None, options.peers.split(",")):
        mb = peer_memory_mb(key)
        print(f"{BY_KEY[key].name}: {mb:.1f} MB for one more numpy model", flush=True)
        result[f"peer_{key}"] = {"pss_mb": mb}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
