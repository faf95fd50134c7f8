"""A client that people use, on one connection, with the arguments and the report of load.c.

    python client.py tritonclient|requests|curl ADDRESS PORT 1 WARM_S RUN_S SAMPLES_DIR REQUEST...

It runs in an environment of its own (apps/clients.txt). The values of each request follow from its number, as in
load.c. Latencies are what the client's user sees; curl tells its own. curl is given its requests beforehand, as a file
of options with one address after the other.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import values
from values import ChangingPart

CURL_RATE = 1500
"""So many requests a second of the run are written for curl."""
SAMPLES = 32
SAMPLED_EVERY = 97
JSON_HEAD = "Inference-Header-Content-Length"


class Request:
    """One request of the list: its parts as a client library wants them."""

    def __init__(self, file: Path) -> None:
        self._message = file.read_bytes()
        self._parts: tuple[ChangingPart, ...] = values.read_parts(file.with_name(f"{file.name}.values").read_text())
        head, _, _ = self._message.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.path = first.split()[1]
        pairs = (line.split(": ", 1) for line in lines)
        self.headers = {name: value for name, value in pairs if name not in ("Host", "Content-Length")}
        self._body_at = len(head) + 4

    def body(self, serial: int) -> bytes:
        """What request number `serial` sends."""
        return values.changed(self._message, self._parts, serial)[self._body_at :]


class Client(ABC):
    """Sends requests one after the other."""

    def __init__(self, address: str, requests: list[Request], samples: Path) -> None:
        self.address = address
        self.requests = requests
        self.samples = samples
        self.serial = 0

    def next_one(self) -> tuple[Request, str]:
        """The next request, and the name of its sample."""
        place = self.serial % len(self.requests)
        self.serial += 1
        return self.requests[place], f"{place}.{self.serial}"

    @abstractmethod
    def run(self, seconds: float, *, is_kept: bool) -> Iterator[float]:
        """Send for so long; yields the seconds that each request took. `is_kept`: keep samples."""


class PythonClient(Client):
    """A library that is called for each request."""

    @abstractmethod
    def prepare(self, request: Request) -> Any:
        """What a user has before the call."""

    @abstractmethod
    def call(self, request: Request, prepared: Any) -> bytes:
        """One request; its reply's body."""

    def run(self, seconds: float, *, is_kept: bool) -> Iterator[float]:
        end, kept = time.perf_counter() + seconds, 0
        while (now := time.perf_counter()) < end:
            request, name = self.next_one()
            prepared = self.prepare(request)
            began = time.perf_counter()
            body = self.call(request, prepared)
            yield time.perf_counter() - began
            if is_kept and kept < SAMPLES and now >= end - seconds + seconds * kept / SAMPLES:
                (self.samples / name).write_bytes(body)
                kept += 1


class RequestsClient(PythonClient):
    """`requests`, with a session."""

    def __init__(self, address: str, requests: list[Request], samples: Path) -> None:
        super().__init__(address, requests, samples)
        import requests as library  # noqa: PLC0415 - each client imports only its own

        self._session = library.Session()

    def prepare(self, request: Request) -> Any:
        return request.body(self.serial)

    def call(self, request: Request, prepared: Any) -> bytes:
        reply = self._session.post(f"http://{self.address}{request.path}", data=prepared, headers=request.headers)
        reply.raise_for_status()
        return bytes(reply.content)


class TritonClient(PythonClient):
    """tritonclient.http, which writes the request itself: binary, by its defaults."""

    def __init__(self, address: str, requests: list[Request], samples: Path) -> None:
        super().__init__(address, requests, samples)
        import tritonclient.http as library  # noqa: PLC0415 - as above

        self._library = library
        self._client = library.InferenceServerClient(self.address)

    def prepare(self, request: Request) -> Any:
        import numpy as np  # noqa: PLC0415 - as above

        body = request.body(self.serial)
        size = int(request.headers[JSON_HEAD])
        shape = json.loads(body[:size])["inputs"][0]["shape"]
        tensor = self._library.InferInput("x", shape, "FP32")
        tensor.set_data_from_numpy(np.frombuffer(body[size:], np.float32).reshape(shape))
        return request.path.split("/")[3], tensor

    def call(self, request: Request, prepared: Any) -> bytes:  # noqa: ARG002 - as declared
        model, tensor = prepared
        found = self._client.infer(model, [tensor])
        return json.dumps({"outputs": [{"data": found.as_numpy("y").ravel().tolist()}]}).encode()


class Curl(Client):
    """curl, one process with one connection."""

    def __init__(self, address: str, requests: list[Request], samples: Path) -> None:
        super().__init__(address, requests, samples)
        program = shutil.which("curl")
        if program is None:
            raise SystemExit("there is no curl on this machine")
        self._program = program

    def run(self, seconds: float, *, is_kept: bool) -> Iterator[float]:
        folder = self.samples.parent / f"curl.{self.serial}"
        folder.mkdir()
        options = "next\n".join(self._options(folder, is_kept=is_kept) for _ in range(int(CURL_RATE * seconds)))
        (folder / "options").write_text(options)
        yield 0.0  # all is written: the run begins
        done = subprocess.run(
            [self._program, "--config", str(folder / "options")], capture_output=True, text=True, check=False
        )
        for line in done.stdout.splitlines():
            status, took_s, connects = line.split()
            if status != "200" or int(connects) > 1:
                raise SystemExit(f"curl got {status} with {connects} connections for one request")
            yield float(took_s)
        if done.returncode:
            raise SystemExit(f"curl ended with {done.returncode}: {done.stderr[-300:]}")

    def _options(self, folder: Path, *, is_kept: bool) -> str:
        request, name = self.next_one()
        body = folder / name
        body.write_bytes(request.body(self.serial))
        output = self.samples / name if is_kept and self.serial % SAMPLED_EVERY == 0 else "/dev/null"
        lines = [f'url = "http://{self.address}{request.path}"', f'data-binary = "@{body}"', f'output = "{output}"']
        lines += [f'header = "{key}: {value}"' for key, value in request.headers.items()]
        return "\n".join([*lines, "silent", r'write-out = "%{http_code} %{time_total} %{num_connects}\n"', ""])


CLIENTS: dict[str, type[Client]] = {"tritonclient": TritonClient, "requests": RequestsClient, "curl": Curl}


def cpu_s() -> float:
    """CPU time of this process and of ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    kind, address, port, _connections, warm_s, run_s, folder, *files = sys.argv[1:]
    client = CLIENTS[kind](f"{address}:{port}", [Request(Path(file)) for file in files], Path(folder))
    for _ in client.run(float(warm_s), is_kept=False):
        pass
    replies = client.run(float(run_s), is_kept=True)
    next(replies)  # curl's requests are written by then
    print("begin", flush=True)
    used_s, began = cpu_s(), time.perf_counter()
    took_us = sorted(each * 1e6 for each in replies)
    elapsed_s = time.perf_counter() - began
    print("end", flush=True)

    def at(share: float) -> float:
        return took_us[min(int(share * len(took_us)), len(took_us) - 1)]

    used_s = cpu_s() - used_s
    told: dict[str, object] = {"requests": len(took_us), "elapsed_s": elapsed_s, "client_cpu_s": used_s}
    told |= {"sent": client.serial, "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": took_us[-1]}
    told |= {"failures": 0, "first_failure": "", "reconnects": 0, "oldest_us": 0.0, "received_bytes": 0}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
