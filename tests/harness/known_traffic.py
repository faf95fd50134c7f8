"""Clients whose requests are alike but for their values, as those are that a gateway serves as known requests.

The model answers `y = x` with its edition in place of the last value (`write_ordered_model`), so that every answer can
be told from that to another request, and from that of another edition.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from engines.build import write_python
from harness.server import EVENT_S, Server
from mmsup.ipc.specs import TensorSpec

VALUES: Final = 8
FORMS: Final = ("binary", "json", "binary with id", "json with id")
HEADER: Final = "Inference-Header-Content-Length"
CODE: Final = """
import os, signal, time

EDITION, PAUSE_S = {edition}, {pause_s}


class Model:
    def load(self, context): ...

    def infer(self, inputs):
        x = inputs["x"].copy()
        for order, amount in x.reshape(-1, x.shape[-1])[:, :2]:
            if order == 1:
                raise RuntimeError("asked to raise")
            if order == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if order == 3:
                time.sleep(float(amount))
        if PAUSE_S:
            time.sleep(PAUSE_S)
        x[..., -1] = EDITION
        return {{"y": x}}
"""
RAISE, DIE, SLEEP = 1.0, 2.0, 3.0
"""First value of a request: what the model does with it; the second value is for how long it sleeps, in seconds."""


def write_ordered_model(
    repository: Path,
    name: str,
    *,
    edition: int = 1,
    pause_s: float = 0.0,
    dims: int = VALUES,
    batch: int = 0,
    **more: Any,
) -> None:  # as YAML has it
    """Write it, or another edition over it. `dims`: -1 for a length that is not declared."""
    code = CODE.format(edition=edition, pause_s=pause_s)
    if (repository / name).exists():
        (repository / name / "1" / "model.py").write_text(code)
        return
    tensors = (TensorSpec("x", "FP32", (dims,)),), (TensorSpec("y", "FP32", (dims,)),)
    write_python(repository, name, code, *tensors, batch, more)


def id_of(form: str) -> str:
    return "mine" if form.endswith("id") else ""


def request_body(
    form: str, values: Sequence[float], row: Sequence[int] = (), parameters: Mapping[str, int | bool] | None = None
) -> tuple[bytes, dict[str, str]]:
    """The body of a request with FP32 `x`, in one of FORMS, and headers for it. `row`: leading axes."""
    x: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [*row, len(values)]}  # JSON
    document: dict[str, Any] = {"id": id_of(form)} if id_of(form) else {}  # JSON
    document |= {"inputs": [x], "parameters": dict(parameters or {})}
    if form.startswith("json"):
        x["data"] = list(values)
        return json.dumps(document).encode(), {}
    blob = struct.pack(f"<{len(values)}f", *values)
    x["parameters"] = {"binary_data_size": len(blob)}
    document["parameters"]["binary_data_output"] = True
    words = json.dumps(document).encode()
    return words + blob, {HEADER: str(len(words))}


def answer_of(headers: Mapping[str, str], body: bytes) -> tuple[str, list[float]]:
    """The id and the output `y` in a response. Keys of `headers` are in lower case."""
    end = int(headers.get(HEADER.lower(), len(body)))
    document, at = json.loads(body[:end]), end
    found: list[float] = []
    for each in document["outputs"]:
        size = each.get("parameters", {}).get("binary_data_size", 0)
        if each["name"] == "y":
            found = list(struct.unpack(f"<{size // 4}f", body[at : at + size])) if size else each["data"]
        at += size
    return document.get("id", ""), found


@dataclass(frozen=True)
class Answer:
    """What a client got for one request."""

    sent_s: float
    took_s: float
    status: int
    """0: the connection was cut before the answer."""
    code: str = ""
    edition: int = 0
    """Of a right answer."""
    wrong: str = ""
    """What is wrong with it."""


class KnownClient:
    """One connection that sends one kind of request, and connects again after a cut."""

    def __init__(
        self, address: tuple[str, int], model: str, form: str, *, row: bool = False, timeout_us: int = 0
    ) -> None:
        self._address = address
        self._model = model
        self._form = form
        self._row = [1] if row else []
        self._parameters: dict[str, int | bool] = {"timeout": timeout_us} if timeout_us else {}
        self._socket: socket.socket | None = None
        self._received = b""
        self.number = 0

    def ask(self, values: Sequence[float]) -> Answer:
        """Send these values; the answer. OSError if nobody listens."""
        began = time.monotonic()
        if self._socket is None:
            self._socket = socket.create_connection(self._address, EVENT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(self._packed(values))
            status, headers, body = self._receive()
        except (ConnectionError, EOFError):
            self.close()
            return Answer(began, time.monotonic() - began, 0)
        took_s = time.monotonic() - began
        if headers.get("connection", "").lower() == "close":
            self.close()
        return self._judged(began, took_s, status, headers, body, values)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._received = None, b""

    def _packed(self, values: Sequence[float]) -> bytes:
        body, headers = request_body(self._form, values, self._row, self._parameters)
        lines = [f"POST /v2/models/{self._model}/infer HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    def _receive(self) -> tuple[int, dict[str, str], bytes]:
        got = self._received
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, rest = got.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
        size = int(headers["content-length"])
        while len(rest) < size:
            rest += self._more()
        self._received = rest[size:]
        return int(first.split()[1]), headers, rest[:size]

    def _more(self) -> bytes:
        assert self._socket is not None, "it is connected"
        got = self._socket.recv(65536)
        if not got:
            raise EOFError
        return got

    def _judged(
        self, began: float, took_s: float, status: int, headers: dict[str, str], body: bytes, values: Sequence[float]
    ) -> Answer:
        if self._received:
            return Answer(began, took_s, status, wrong=f"more bytes came: {self._received[:60]!r}")
        if status != 200:
            return Answer(began, took_s, status, json.loads(body)["code"])
        client_id, data = answer_of(headers, body)
        is_right = data[:-1] == list(values[:-1]) and client_id == id_of(self._form)
        wrong = "" if is_right else f"{data} with id '{client_id}' for {values}"
        return Answer(began, took_s, status, edition=int(data[-1]), wrong=wrong)


class KnownTraffic:
    """Many such clients until the end of the block; each has a thread, which sends as soon as it has an answer."""

    def __init__(
        self,
        server: Server,
        model: str,
        connections: int = 8,
        *,
        forms: Sequence[str] = FORMS,
        pace_s: float = 0.0,
        row: bool = False,
        timeout_us: int = 0,
        orders: Callable[[random.Random], tuple[float, float]] = lambda _: (0.0, 0.0),
    ) -> None:
        """`orders`: the first two values of a request."""
        self._clients = [
            KnownClient(server.address(), model, forms[number % len(forms)], row=row, timeout_us=timeout_us)
            for number in range(connections)
        ]
        self._pace_s = pace_s
        self._orders = orders
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._failures: list[BaseException] = []
        self.answers: list[Answer] = []

    def __enter__(self) -> KnownTraffic:
        self._threads = [
            threading.Thread(target=self._run, args=each, name="known traffic") for each in enumerate(self._clients)
        ]
        for each in self._threads:
            each.start()
        self.await_right(4 * len(self._clients))  # by now its requests are known
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(EVENT_S)
        for client in self._clients:
            client.close()
        if kind is None:
            assert not any(each.is_alive() for each in self._threads), "a client has no answer"
            assert not self._failures, self._failures
            assert not self.wrong, f"{len(self.wrong)} of {len(self.answers)}: {self.wrong[:3]}"

    @property
    def wrong(self) -> list[str]:
        return [each.wrong for each in self.answers if each.wrong]

    def right(self) -> int:
        """Number of right answers so far."""
        with self._changed:
            return sum(each.status == 200 and not each.wrong for each in self.answers)

    def errors(self) -> Counter[tuple[int, str]]:
        """Number of answers that are none by status and code; status 0 for cut connections."""
        with self._changed:
            return Counter((each.status, each.code) for each in self.answers if each.status != 200)

    def await_right(self, count: int) -> None:
        """Wait until `count` more requests were answered rightly."""
        goal = self.right() + count
        end_s = time.monotonic() + EVENT_S
        with self._changed:
            while sum(each.status == 200 for each in self.answers) < goal:
                assert not self._failures, self._failures
                assert self._changed.wait(end_s - time.monotonic()), (
                    f"{goal} right answers were awaited; the last ones: {self.answers[-5:]}"
                )

    def p99_s(self, count: int) -> float:
        """The 99th percentile of the next `count` right answers."""
        with self._changed:
            before = len(self.answers)
        self.await_right(count)
        took_s = sorted(each.took_s for each in self.answers[before:] if each.status == 200)
        return took_s[int(len(took_s) * 0.99)]

    def _run(self, number: int, client: KnownClient) -> None:
        rng = random.Random(number)
        try:
            while not self._stop.is_set():
                client.number += 1
                tag = float(1000 + number), float(1000 + client.number % 9000)
                values = [*self._orders(rng), *tag, *(float(rng.randint(1000, 9999)) for _ in range(VALUES - 4))]
                answer = client.ask(values)
                with self._changed:
                    self.answers.append(answer)
                    self._changed.notify_all()
                if self._pace_s:
                    self._stop.wait(self._pace_s)
        except Exception as error:  # noqa: BLE001 - reported at the end of the block
            with self._changed:
                self._failures.append(error)
                self._changed.notify_all()
