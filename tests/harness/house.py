"""A server with a bystander, into which a test brings its victim.

One server serves a whole file of tests: each brings a model of its own, hurts it, and takes it away again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.build import write_fault_model, write_identity_onnx
from harness.bystander import Bystander
from harness.invariants import assert_clean, settled
from harness.server import Http, Json, Server, eventually

HANG_LIMIT_S = 0.5
BYSTANDER = "bystander"


class Victim:
    """A model that does harm on request."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name

    def send(self, mode: str = "ok", amount: float = 0.0) -> tuple[int, Json]:
        """One call; status and body."""
        http = Http(self.server.address())
        try:
            status, reply = http.infer(
                self.name,
                x=("FP32", [3], [1.0, 2.0, 3.0]),
                mode=("BYTES", [1], [mode]),
                amount=("FP64", [1], [amount]),
            )
            assert isinstance(reply, dict)
            return status, reply
        finally:
            http.close()

    def in_background(self, mode: str, amount: float = 0.0) -> Background:
        """One call that somebody else waits for."""
        return Background(self, mode, amount)

    def await_busy(self, requests: int = 1) -> None:
        """Returns when this many requests are with the model."""

        def looking() -> bool:
            return self.server.gauge("mmsup_requests_open", model=self.name) >= requests

        eventually(looking, f"{requests} requests at {self.name}")

    def death(self, number: int = 1) -> Json:
        """The event of its nth death."""
        return self.server.await_event("worker_exit", self.name, number)

    def assert_serves(self) -> None:
        """It answers, and right."""
        status, reply = self.send()
        assert status == 200, reply
        assert reply["outputs"][0]["data"] == [1.0, 2.0, 3.0]


class Background:
    """A call in a thread."""

    def __init__(self, victim: Victim, mode: str, amount: float) -> None:
        self._result: tuple[int, Json] | None = None
        self._thread = threading.Thread(target=self._run, args=(victim, mode, amount), name=f"call {mode}")
        self._thread.start()

    def _run(self, victim: Victim, mode: str, amount: float) -> None:
        self._result = victim.send(mode, amount)

    def result(self) -> tuple[int, Json]:
        """Its status and body, when they are there."""
        self._thread.join(60)
        assert self._result is not None, "the call has no answer"
        return self._result


@contextlib.contextmanager
def victim(server: Server, name: str, **options: Any) -> Iterator[Victim]:  # options of write_fault_model
    """A victim beside the bystander; at the end everything is as before it came."""
    before = settled(server)
    write_fault_model(server.repository, name, **{"hang_limit": f"{HANG_LIMIT_S}s", **options})
    server.ctl("load", name=name)
    made = Victim(server, name)
    made.assert_serves()
    warm = settled(server)
    with Bystander(server, BYSTANDER):
        yield made
    if server.model(name)["state"] == "ready":
        assert_clean(warm, server)
    server.ctl("unload", name=name)
    assert_clean(before, server)


def bystander_repository(folder: Path) -> Path:
    """A repository with the bystander alone."""
    write_identity_onnx(folder, BYSTANDER)
    return folder
