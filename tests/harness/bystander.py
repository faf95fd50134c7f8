"""A client that keeps calling one healthy model while another one is hurt, and fails the test if it notices.

Its calls are of a few kinds in turn, each of which a gateway soon serves as known requests.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPException
from types import TracebackType

from harness.known_traffic import FORMS, answer_of, id_of, request_body
from harness.server import EVENT_S, Server, eventually


@dataclass
class Bystander:
    """Calls `model`, an FP32 identity, until the end of the block."""

    server: Server
    model: str
    may_be_cut: bool = False
    """A gateway may die, which cuts its connections; no connection may be refused even then."""
    stays: bool = True
    """The workers of the model must be the same processes afterwards; false for an upgrade."""
    pace_s: float = 0.005
    """Pause between two calls. Without one the caller takes a whole core from the fault under test."""
    cuts: int = 0
    sent: int = 0
    failures: list[str] = field(default_factory=list)
    worst_s: float = 0.0
    took_s: list[float] = field(default_factory=list)
    """Seconds that each call took."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _enough: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Bystander:
        self.pids = self.server.pids(self.model)
        self._http = self.server.http()
        self._thread = threading.Thread(target=self._run, name="bystander")
        self._thread.start()
        self.await_more(5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.await_more(5)
        self._stop.set()
        self._thread.join(EVENT_S)
        if kind is None:
            self.assert_unharmed()

    def await_more(self, count: int) -> None:
        """Wait until `count` more calls have been answered."""
        with self._enough:
            goal = self.sent + count
            reached = self._enough.wait_for(lambda: self.sent >= goal or bool(self.failures), EVENT_S)
        assert reached, f"the bystander got {self.sent} answers, {goal} were awaited"

    def p99_s(self, count: int) -> float:
        """The 99th percentile of the next `count` calls, in seconds."""
        self.await_more(count)
        with self._enough:
            return sorted(self.took_s[-count:])[int(count * 0.99)]

    def assert_unharmed(self) -> None:
        """No call failed and the workers are the same; an extra worker that failed to start may still be exiting."""
        assert not self.failures, (
            f"{len(self.failures)} of {self.sent} calls to {self.model} failed: {self.failures[:3]}"
        )
        if not self.stays:
            return
        assert set(self.pids) <= set(self.server.pids(self.model))
        eventually(lambda: self.server.pids(self.model) == self.pids, "the same processes as before")

    def _run(self) -> None:
        client = self._http
        number = 0
        while not self._stop.wait(self.pace_s):
            number += 1
            form, row = FORMS[number % len(FORMS)], [float(1000 + number % 9000), 1.0, 2.0, 3.0]
            began = time.monotonic()
            try:
                body, given = request_body(form, row)
                status, headers, reply = client.send("POST", f"/v2/models/{self.model}/infer", body, given)
                found = {name.lower(): value for name, value in headers.items()}
                is_right = status == 200 and answer_of(found, reply) == (id_of(form), row)
                fault = "" if is_right else f"{status} {reply!r}"
            except (HTTPException, OSError) as error:
                fault = "" if self._is_cut(error) else repr(error)
                client.close()  # the next call connects anew
            with self._enough:
                self.sent += 1
                self.took_s.append(time.monotonic() - began)
                self.worst_s = max(self.worst_s, self.took_s[-1])
                if fault:
                    self.failures.append(fault)
                self._enough.notify_all()
            if fault:
                break
        client.close()

    def _is_cut(self, error: Exception) -> bool:
        if not self.may_be_cut or not isinstance(error, ConnectionResetError | BrokenPipeError | HTTPException):
            return False
        self.cuts += 1
        return True
