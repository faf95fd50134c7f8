"""Counts the calls, files and switches between files that one request and one worker's death take in each process.

    python benchmarks/file_switches.py [--checkout PATH] [--rounds N] [--requests N] [--json] [--trace]

Starts a server of one Python model with one gateway, in which a profile hook logs each call of a Python function of
mmsup with its time. One warm connection then sends single inferences, binary and JSON, and a round ends with SIGKILL to
the worker while it runs a request. A log is cut by the client's own times: from its first byte sent, or the signal, to
the first byte of the answer; for an inference on to the end of the burst of calls that was under way then. A switch is
a call into another file than the call before it. The figures are medians; times are inflated by the hook. Where the
cut of `death, until the answer` falls depends on the scheduler: its figures vary by a fifth.

Without --checkout the checkout of this file is measured. --trace also prints the visited files in order.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path

from checkout import HERE, commit_of, make_environment

HOOK = '''
import os, sys, threading, time

def label():
    """The part that this process has in the server: what follows `-m`."""
    words = sys.orig_argv
    if "-m" not in words:
        return ""
    names = {"mmsup.supervisor.keeper": "keeper", "mmsup.supervisor.controller": "controller",
             "mmsup.supervisor.run": "controller", "mmsup.gateway": "gateway", "mmsup.worker": "worker"}
    return names.get(words[words.index("-m") + 1], "")

def install(name):
    log = os.open(f"{FOLDER}/{name}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    known = {}
    def log_call(frame, event, _):
        if event == "call":
            code = frame.f_code
            line = known.get(code)
            if line is None:
                path = code.co_filename
                inside = path.startswith(ROOT)
                line = known[code] = f" {path[len(ROOT):]} {code.co_qualname}\\n".encode() if inside else b""
            if line:
                os.write(log, b"%d" % time.monotonic_ns() + line)
    os.register_at_fork(after_in_child=lambda: sys.setprofile(None))
    threading.setprofile(log_call)
    sys.setprofile(log_call)

if name := label():
    install(name)
'''
MODEL = """
import time

class Model:
    def load(self, context):
        pass

    def infer(self, inputs):
        x = inputs["x"]
        if x[0] < 0:
            time.sleep(60)
        return {"y": x}
"""
CONFIG = """
backend: "python"
input [ { name: "x", data_type: TYPE_FP32, dims: [ -1 ] } ]
output [ { name: "y", data_type: TYPE_FP32, dims: [ -1 ] } ]
"""
VALUES = 16
START_S = 120.0
ANSWER_S = 60.0
WARM_REQUESTS = 200
BUSY_S = 0.5
"""How long a request is given to reach the model before its worker is killed."""
QUIET_S = 0.3
"""A pause in which nothing is sent, so that two windows cannot overlap."""
BURST_NS = 3_000_000
"""Calls that follow each other within this time belong to one burst."""
INFERENCE, DEATH = ("gateway", "worker"), ("keeper", "controller", "gateway")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function of mmsup."""

    time_ns: int
    file: str
    function: str


@dataclass(frozen=True, slots=True)
class Count:
    """What one process did in one window."""

    calls: int
    files: int
    switches: int


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time with the calls of each kind of process in it."""

    what: str
    calls: dict[str, list[Call]]
    took_ns: int


class Connection:
    """One HTTP connection that notes when it sent the first byte and when it got the first one back."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_ns = self.answered_ns = 0

    def send(self, request: bytes) -> None:
        """Send a whole request."""
        self.sent_ns = time.monotonic_ns()
        self._socket.sendall(request)

    def receive(self) -> tuple[int, bytes]:
        """Status and body of the answer."""
        got = self._socket.recv(1 << 16)
        self.answered_ns = time.monotonic_ns()
        while b"\r\n\r\n" not in got:
            got += self._read()
        head, _, body = got.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length, f"an answer without a length: {head!r}"
        while len(body) < int(length[1]):
            body += self._read()
        return int(head.split()[1]), body

    def call(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and wait for its answer."""
        self.send(request)
        return self.receive()

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> bytes:
        more = self._socket.recv(1 << 16)
        if not more:
            raise ConnectionResetError("the server closed the connection")
        return more


class Server:
    """A traced server; its logs lie in `folder/logs`, one file per process."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self._logs, self._state = folder / "logs", folder / "state"
        self._logs.mkdir()
        hook = f"ROOT = {str(checkout.resolve() / 'src' / 'mmsup') + '/'!r}\nFOLDER = {str(self._logs)!r}\n{HOOK}"
        python = make_environment(folder / "environment", checkout, {"mmsup_call_log": hook})
        (folder / "models" / "echo" / "1").mkdir(parents=True)
        (folder / "models" / "echo" / "config.pbtxt").write_text(CONFIG)
        (folder / "models" / "echo" / "1" / "model.py").write_text(MODEL)
        self.port = _free_port()
        command = [str(python), "-m", "mmsup.supervisor.cli", "serve", f"--model-repository={folder / 'models'}"]
        command += [f"--http-port={self.port}", "--grpc-port=-1", "--metrics-port=-1"]
        command += ["--gateways=1", "--spare-gateway=false"]
        command += [f"--runtime-dir={folder / 'run'}", f"--state-dir={self._state}"]
        self._output = folder / "output"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(command, env=environ, stdout=output, stderr=output)

    def wait_until_ready(self, count: int) -> None:
        """Returns when a worker has become ready for the `count`th time. Read from the file of events, which disturbs
        no process of the server."""
        events, deadline = self._state / "events.jsonl", time.monotonic() + START_S
        while not events.exists() or events.read_text().count('"worker_ready"') < count:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"no worker became ready:\n{self._output.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)

    def calls(self, processes: tuple[str, ...]) -> dict[str, list[Call]]:
        """All calls so far, by kind of process, in the order of time."""
        return {name: self._calls(name) for name in processes}

    def _calls(self, process: str) -> list[Call]:
        texts = [each.read_text() for each in self._logs.glob(f"{process}.*")]
        fields = (line.split() for text in texts for line in text.splitlines())
        return sorted((Call(int(time_ns), file, function) for time_ns, file, function in fields), key=_time)

    def worker_pid(self) -> int:
        """The newest worker."""
        files = sorted(self._logs.glob("worker.*"), key=lambda each: each.stat().st_mtime_ns)
        return int(files[-1].suffix[1:])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        self._process.terminate()
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def inference(values: list[float], *, binary: bool) -> bytes:
    """A whole request to the model."""
    tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [len(values)]}
    data = struct.pack(f"<{len(values)}f", *values) if binary else b""
    tensor |= {"parameters": {"binary_data_size": len(data)}} if binary else {"data": values}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
    lines = ["POST /v2/models/echo/infer HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(head) + len(data)}"]
    lines += [f"Inference-Header-Content-Length: {len(head)}"] if binary else []
    return "\r\n".join([*lines, "", ""]).encode() + head + data


def measure_inferences(server: Server, what: str, request: bytes, count: int) -> list[Window]:
    """`count` single requests over one warm connection, with a pause after each."""
    connection = Connection(server.port)
    for _ in range(WARM_REQUESTS):
        status, body = connection.call(request)
        assert status == 200, f"{status}: {body!r}"
    times = []
    for _ in range(count):
        time.sleep(QUIET_S)
        connection.call(request)
        times.append((connection.sent_ns, connection.answered_ns))
    time.sleep(QUIET_S)
    connection.close()
    logs = server.calls(INFERENCE)
    return [
        Window(what, {name: _burst(calls, start_ns, end_ns) for name, calls in logs.items()}, end_ns - start_ns)
        for start_ns, end_ns in times
    ]


def measure_death(server: Server) -> list[Window]:
    """SIGKILL to the worker while it runs a request: until the client has its answer, and until the model is served."""
    connection = Connection(server.port)
    connection.send(inference([-1.0] * VALUES, binary=True))
    time.sleep(BUSY_S)
    killed_ns = time.monotonic_ns()
    os.kill(server.worker_pid(), signal.SIGKILL)
    status, _ = connection.receive()
    assert status != 200, "the worker was to die over this request"
    answered_ns = connection.answered_ns
    server.wait_until_ready(2)
    time.sleep(QUIET_S)
    request, served_ns = inference([1.0] * VALUES, binary=True), 0
    while not served_ns or status != 200:
        served_ns = time.monotonic_ns()
        status, _ = connection.call(request)
    connection.close()
    logs = server.calls(DEATH)
    ends = {"death, until the answer": answered_ns, "death, until served again": served_ns}
    return [
        Window(what, {name: _between(calls, killed_ns, end_ns) for name, calls in logs.items()}, end_ns - killed_ns)
        for what, end_ns in ends.items()
    ]


def measure(checkout: Path, rounds: int, requests: int) -> Iterator[Window]:
    """Every window of every round; each round has a server of its own, so that no restart has to wait for a backoff."""
    values = [float(each) for each in range(VALUES)]
    for number in range(rounds):
        print(f"round {number + 1} of {rounds} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="mmsup_bench_") as text, running(checkout, Path(text)) as server:
            for what, binary in (("inference, binary", True), ("inference, JSON", False)):
                yield from measure_inferences(server, what, inference(values, binary=binary), requests)
            yield from measure_death(server)


def counted(calls: list[Call]) -> Count:
    """Calls, distinct files, switches."""
    files = [each.file for each in calls]
    return Count(len(files), len(set(files)), sum(one != other for one, other in pairwise(files)))


def table(windows: list[Window]) -> dict[str, dict[str, Count]]:
    """Medians by kind of window and process, each figure on its own."""
    found: dict[str, dict[str, Count]] = {}
    for what in dict.fromkeys(each.what for each in windows):
        same = [each.calls for each in windows if each.what == what]
        found[what] = {}
        for name in same[0]:
            counts = [counted(calls[name]) for calls in same]
            columns = zip(*((each.calls, each.files, each.switches) for each in counts), strict=True)
            found[what][name] = Count(*(round(statistics.median(column)) for column in columns))
    return found


def lines_of(windows: list[Window]) -> Iterator[str]:
    """The table as text."""
    yield f"{'':28}{'process':12}{'calls':>8}{'files':>8}{'switches':>10}{'ms':>10}"
    for what, counts in table(windows).items():
        took_ms = statistics.median(each.took_ns for each in windows if each.what == what) / 1e6
        for name, each in counts.items():
            yield f"{what:28}{name:12}{each.calls:8}{each.files:8}{each.switches:10}{took_ms:10.1f}"


def traces(windows: list[Window]) -> Iterator[str]:
    """The last window of each kind, a line for each visit of a file with the functions called there."""
    for what, window in {each.what: each for each in windows}.items():
        for name, calls in window.calls.items():
            yield f"\n{what}, {name}"
            for file, visit in groupby(calls, key=lambda each: each.file):
                yield f"  {file.removesuffix('.py'):44} {', '.join(each.function for each in visit)}"


@contextmanager
def running(checkout: Path, folder: Path) -> Iterator[Server]:
    """A traced server that serves; stopped afterwards."""
    server = Server(checkout, folder)
    try:
        server.wait_until_ready(1)
        yield server
    finally:
        server.stop()


def _between(calls: list[Call], start_ns: int, end_ns: int) -> list[Call]:
    return [each for each in calls if start_ns <= each.time_ns < end_ns]


def _burst(calls: list[Call], start_ns: int, end_ns: int) -> list[Call]:
    """The calls from start to end, and those after it until there is a pause: work that follows the answer."""
    found: list[Call] = []
    for each in calls:
        if each.time_ns >= start_ns:
            if each.time_ns >= end_ns and (not found or each.time_ns - found[-1].time_ns > BURST_NS):
                break
            found.append(each)
    return found


def _time(call: Call) -> int:
    return call.time_ns


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=HERE, metavar="PATH", help="the mmsup to measure")
    parser.add_argument("--rounds", type=int, default=3, help="servers that are started, one death each (3)")
    parser.add_argument("--requests", type=int, default=10, help="counted requests of each kind per round (10)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--trace", action="store_true", help="also print the visited files and functions in order")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # so that the server is stopped
    windows = list(measure(options.checkout, options.rounds, options.requests))
    if options.json:
        counts = {what: {name: asdict(each) for name, each in row.items()} for what, row in table(windows).items()}
        print(json.dumps({"commit": commit_of(options.checkout), "windows": counts}, indent=1))
        return
    print(f"mmsup {commit_of(options.checkout)}, medians of {options.rounds} rounds", *lines_of(windows), sep="\n")
    if options.trace:
        print(*traces(windows), sep="\n")


if __name__ == "__main__":
    main()
