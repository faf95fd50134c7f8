"""Many clients that load, unload, call and list the same models at once, and what a reference says of their answers.

What a client may be told follows from the intervals of all operations: an operation takes effect at one moment between
its request and its answer. So a model is certainly up from the answer to a load until the request of the next unload,
and certainly down from the answer to an unload until the request of the next load; between these either is right. One
that is asleep is up: it is loaded for whoever calls it.
"""

from __future__ import annotations

import bisect
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.server import Http, Json, Server
from mmsup.supervisor.cli.ctl.control_client import ServerRefused

VERBS: Final = {"infer": 88, "load": 4, "unload": 3, "ready": 2, "index": 3}
"""How often each is chosen, of a hundred."""
WITH_SLEEP: Final = VERBS | {"infer": 83, "sleep": 4, "wake": 1}
"""The same where models are loaded on demand."""
DOWN_CODES: Final = frozenset({"unknown_model", "unavailable", "model_loading", "model_restarting", "unknown_version"})
"""How a call of a model that is not up may be refused."""
REFUSALS: Final = frozenset({"conflict", "unknown_model"})
"""How it may be refused to put a model to sleep, or to load it from sleep."""
ANSWER_S: Final = 60.0


@dataclass(frozen=True)
class Operation:
    """One operation of one client. Times are monotonic seconds."""

    verb: str
    model: str
    began_s: float
    ended_s: float
    status: int
    code: str = ""
    is_right: bool = True
    """The answer was that to this very request."""

    @property
    def is_ok(self) -> bool:
        return self.status == 200


class Reference:
    """The operations on one model, and what follows from them. Pure."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._changes = [each for each in operations if each.verb in ("load", "unload")]
        """In the order of their answers; failed ones too: they may have had an effect for a while."""
        self._changes.sort(key=lambda each: each.ended_s)
        self._ends_s = [each.ended_s for each in self._changes]

    def certainly(self, began_s: float, ended_s: float) -> str:
        """`load` if the model was up during the whole interval, `unload` if it was down, else empty."""
        earliest_s = 0.0  # one that was answered before the request of another decides nothing beside it
        for last in reversed(self._changes[: bisect.bisect_right(self._ends_s, began_s)]):
            if last.ended_s < earliest_s:
                return ""
            if last.is_ok:
                earliest_s = max(earliest_s, last.began_s)
                later = self._changes[bisect.bisect_left(self._ends_s, last.began_s) :]
                if all(each.verb == last.verb for each in later if each.began_s <= ended_s):
                    return last.verb
        return ""

    def final_states(self) -> set[bool]:
        """Whether the model is up when all is over: both where that depends on which operation was the last."""
        done = [each for each in self._changes if each.is_ok]
        if not done:
            return {False}
        latest_s = max(each.began_s for each in done)
        return {each.verb == "load" for each in done if each.ended_s >= latest_s}

    def faults(self) -> list[str]:
        """Answers that no order of the operations explains."""
        return [text for each in self._operations if (text := self._fault(each))]

    def _fault(self, each: Operation) -> str:
        if each.verb == "load":
            unloads = [other for other in self._changes if other.verb == "unload"]
            overlaps = any(other.ended_s >= each.began_s and other.began_s <= each.ended_s for other in unloads)
            if not each.is_ok and not (each.code == "conflict" and overlaps):
                return f"a load failed, and nobody unloaded it: {each}"
        elif each.verb == "unload":
            if not each.is_ok:
                return f"an unload failed: {each}"
        elif each.verb in ("sleep", "wake"):
            if not each.is_ok and each.code not in REFUSALS:
                return f"refused for another reason than that it is being changed: {each}"
        elif each.verb == "infer":
            certain = self.certainly(each.began_s, each.ended_s)
            if not each.is_right:
                return f"a wrong answer: {each}"
            if certain == "load" and not each.is_ok:
                return f"refused by a model that was up: {each}"
            if certain == "unload" and each.is_ok:
                return f"served by a model that was unloaded: {each}"
            if not each.is_ok and each.code not in DOWN_CODES:
                return f"refused for another reason than that it is not up: {each}"
        elif not each.is_ok and (each.verb != "ready" or self.certainly(each.began_s, each.ended_s) == "load"):
            return f"not answered: {each}"
        return ""


@dataclass(frozen=True)
class Plan:
    """What each client does."""

    operations: int
    verbs: Mapping[str, int]


class StormClient:
    """One client with a random sequence of operations, in a thread of its own."""

    def __init__(self, server: Server, models: Sequence[str], number: int, plan: Plan, *, by_http: bool) -> None:
        """`by_http`: it loads and unloads over HTTP, else by the control socket."""
        self.done: list[Operation] = []
        self.failure = ""
        self._server = server
        self._models = models
        self._rng = random.Random(number)
        self._plan = self._rng.choices(list(plan.verbs), list(plan.verbs.values()), k=plan.operations)
        self._by_http = by_http
        self._http = Http(server.address(), timeout_s=ANSWER_S)
        self._thread = threading.Thread(target=self._run, name=f"storm {number}")
        self._thread.start()

    def join(self, deadline_s: float) -> None:
        """Wait for its last answer, until a monotonic time; `failure` says what it had none to."""
        self._thread.join(max(deadline_s - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self.failure = f"no answer after {len(self.done)} operations; the last one: {self.done[-1:]}"
        self._http.close()

    def _run(self) -> None:
        for number, verb in enumerate(self._plan):
            try:
                self.done.append(self._operate(verb, self._rng.choice(self._models), 10.0 + number))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test reports it
                self.failure = f"{verb}: {error!r}"
                return

    def _operate(self, verb: str, model: str, value: float) -> Operation:
        began_s = time.monotonic()
        status, code, is_right = 0, "", True
        if verb == "infer":
            given = [value] * 8
            status, reply = self._http.infer(model, x=("FP32", [8], given))
            is_right = status != 200 or reply["outputs"][0]["data"] == [*given[:-1], 1.0]
        elif verb == "ready":
            status, reply = self._http.json("GET", f"/v2/models/{model}/ready")
        elif verb == "index":
            status, reply = self._http.json("POST", "/v2/repository/index", {})
        elif self._by_http and verb in VERBS:
            status, reply = self._http.json("POST", f"/v2/repository/models/{model}/{verb}", {})
        else:
            status, reply = self._by_control_socket(verb, model)
        if isinstance(reply, dict):
            code = reply.get("code", "")
        return Operation(verb, model, began_s, time.monotonic(), status, code, is_right)

    def _by_control_socket(self, verb: str, model: str) -> tuple[int, Json]:
        try:
            self._server.ctl(verb, name=model)
        except ServerRefused as refused:
            return 409, {"code": refused.code}
        return 200, {}


@dataclass
class StormResult:
    operations: list[Operation]
    failures: list[str]

    def of(self, model: str) -> Reference:
        return Reference([each for each in self.operations if each.model == model])

    def summary(self) -> str:
        """How many of each, with their median and longest time."""
        lines = []
        counts = Counter((each.verb, each.status, each.code) for each in self.operations)
        for verb, status, code in sorted(counts):
            times = sorted(
                each.ended_s - each.began_s
                for each in self.operations
                if (each.verb, each.status, each.code) == (verb, status, code)
            )
            figures = f"median {times[len(times) // 2] * 1e3:.1f} ms, longest {times[-1]:.2f} s"
            lines.append(f"{verb:7} {status} {code:15} {len(times):6}  {figures}")
        return "\n".join(lines)


def storm(
    server: Server, models: Sequence[str], clients: int, plan: Plan, limit_s: float, *, by_http: bool = True
) -> StormResult:
    """All clients at once. `by_http`: half of them load over HTTP, else all do by the control socket."""
    deadline_s = time.monotonic() + limit_s
    running = [
        StormClient(server, models, number, plan, by_http=by_http and number % 2 == 0) for number in range(clients)
    ]
    for each in running:
        with contextlib.suppress(OSError):
            each.join(deadline_s)
    return StormResult(
        [each for client in running for each in client.done], [each.failure for each in running if each.failure]
    )
