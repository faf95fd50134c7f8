"""A model that fails on request (the victim) beside a healthy one (the bystander) on one server.

A file of tests shares the server: each test loads a model of its own, makes it fail, and unloads it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engines.build import write_fault_model, write_identity_onnx
from harness.bystander import Bystander
from harness.invariants import assert_clean, settled
from harness.server import Json, Server, eventually
from mmsup.supervisor.cli.ctl import control_client

HANG_LIMIT_S = 0.5
BYSTANDER = "bystander"
X = (1.0, 2.0, 3.0)


class Victim:
    """A fault model on a server."""

    def __init__(self, server: Server, name: str, *, batched: bool = False) -> None:
        self.server = server
        self.name = name
        self.batched = batched
        self._background: list[BackgroundCall] = []
        self._released: dict[BackgroundCall, int] = {}
        """Held calls that were let go and are not answered, with the number of exits of workers by then."""

    def send(
        self, mode: str = "ok", amount: float = 0.0, x: Sequence[float] = X, **parameters: int
    ) -> tuple[int, Json]:
        """One call; status and body."""
        http = self.server.http()
        try:
            status, reply = http.json("POST", f"/v2/models/{self.name}/infer", self.call(mode, amount, x, **parameters))
            assert isinstance(reply, dict)
            return status, reply
        finally:
            http.close()

    def call(self, mode: str = "ok", amount: float = 0.0, x: Sequence[float] = X, **parameters: int) -> Json:
        """The body of a call, with parameters of the request. A model with a batch axis gets one row."""
        row = [1] if self.batched else []
        given = (("x", "FP32", [len(x)], list(x)), ("mode", "BYTES", [1], [mode]), ("amount", "FP64", [1], [amount]))
        return {
            "parameters": parameters,
            "inputs": [
                {"name": name, "datatype": datatype, "shape": [*row, *shape], "data": data}
                for name, datatype, shape, data in given
            ],
        }

    def in_background(self, mode: str = "ok", amount: float = 0.0, **more: Any) -> BackgroundCall:  # as for `send`
        """One call in a thread."""
        self._background.append(BackgroundCall(self, mode, amount, more))
        return self._background[-1]

    def queued(self, *calls: Json) -> list[BackgroundCall]:
        """Background calls, each sent once the one before is counted as open; arguments as for `send`."""
        made = []
        for call in calls:
            here = self.await_settled()
            given = dict(call)
            made.append(self.in_background(given.pop("mode", "ok"), given.pop("amount", 0.0), **given))
            self.await_busy(here + 1)
        return made

    def await_settled(self) -> int:
        """Wait until the gauge of open requests equals the number of background calls; that number."""

        def settled_at() -> list[int]:
            here = sum(not each.is_over for each in self._background)  # anew each time: one may be answered meanwhile
            return [here] if self.server.gauge("mmsup_requests_open", model=self.name) == here else []

        return eventually(settled_at, f"as many requests at {self.name} as calls are open")[0]

    @contextlib.contextmanager
    def held(self, **more: Any) -> Iterator[BackgroundCall]:  # as for `send`
        """A call that executes until the end of the block."""
        self._go.unlink(missing_ok=True)
        (held,) = self.queued({"mode": "hold", **more})
        try:
            yield held
        finally:
            self._released[held] = self._exits()
            self.release()

    def release(self) -> None:
        """Let one held call finish."""
        self._go.touch()
        eventually(lambda: not self._go.exists(), "the model went on")

    def release_again(self) -> None:
        """With ZeroMQ the reply to a released call may be lost, if the next run ends the worker; where the model allows
        it, the call is held again by the next worker then."""
        for held, exits in list(self._released.items()):
            if held.is_over:
                del self._released[held]
            elif (now := self._exits()) > exits:
                self._released[held] = now
                self._go.touch()

    def _exits(self) -> int:
        """Exits of workers so far; 0 while the control socket is not there."""
        try:
            return len(self.server.events("worker_exit", self.name))
        except control_client.NoServer:
            return 0

    @property
    def _go(self) -> Path:
        return self.server.repository / self.name / "1" / "go"

    def await_busy(self, requests: int = 1) -> None:
        """Wait until this many requests of the model are open."""

        def looking() -> bool:
            return self.server.gauge("mmsup_requests_open", model=self.name) >= requests

        eventually(looking, f"{requests} requests at {self.name}")

    def death(self, number: int = 1) -> Json:
        """The event of the nth exit of a worker."""
        return self.server.await_event("worker_exit", self.name, number)

    def assert_serves(self) -> None:
        """It answers correctly."""
        status, reply = self.send()
        assert status == 200, reply
        assert reply["outputs"][0]["data"] == [1.0, 2.0, 3.0]

    def runs(self) -> int:
        """The number of runs of the model, including this call."""
        status, reply = self.send()
        assert status == 200, reply
        return run_number(reply)


class BackgroundCall:
    """A call in a thread of its own."""

    def __init__(self, victim: Victim, mode: str, amount: float, more: Json) -> None:
        self._victim = victim
        self._result: tuple[int, Json] | None = None
        self.took_s = 0.0
        self._thread = threading.Thread(target=self._run, args=(victim, mode, amount, more), name=f"call {mode}")
        self._thread.start()

    def _run(self, victim: Victim, mode: str, amount: float, more: Json) -> None:
        began = time.monotonic()
        self._result = victim.send(mode, amount, **more)
        self.took_s = time.monotonic() - began

    @property
    def is_over(self) -> bool:
        """Whether the answer has arrived."""
        return self._result is not None

    def result(self) -> tuple[int, Json]:
        """Wait for the answer: status and body."""
        end = time.monotonic() + 60
        while self._thread.is_alive() and time.monotonic() < end:
            self._thread.join(0.5)
            self._victim.release_again()
        assert self._result is not None, "the call has no answer"
        return self._result


def run_number(reply: Json) -> int:
    """The number of the run that produced this answer."""
    (run,) = [each["data"][0] for each in reply["outputs"] if each["name"] == "runs"]
    assert isinstance(run, int)
    return run


@contextlib.contextmanager
def victim(
    server: Server, name: str, *, largest: int = 3, **options: Any
) -> Iterator[Victim]:  # options of write_fault_model
    """Load a victim, check that the bystander notices nothing, unload it, check the invariants. `largest`: elements
    of the largest call, for which memory is allocated before."""
    before = settled(server)
    write_fault_model(server.repository, name, **{"hang_limit": f"{HANG_LIMIT_S}s", **options})
    server.ctl("load", name=name)
    made = Victim(server, name, batched=bool(options.get("max_batch_size")))
    made.assert_serves()
    if largest > len(X):
        assert made.send(x=[1.0] * largest)[0] == 200
    warm = settled(server)
    with Bystander(server, BYSTANDER):
        yield made
    if server.model(name)["state"] == "ready":
        assert_clean(warm, server)
    server.ctl("unload", name=name)
    assert_clean(before, server)


def bystander_repository(folder: Path) -> Path:
    """Write a repository with the bystander alone."""
    write_identity_onnx(folder, BYSTANDER)
    return folder
