"""The requests that may have ended a worker, as this gateway knows them: suspects run alone, the blocked do not run.

Covers: the inquest after a death (whose requests were in the run, was it their doing), the lists of all models, what
is said of them to the brain and heard from it.
Does not cover: the rule (ipc/poison_policy.py), the request that is held against a list (exchange.py).

Nothing is read or compared as long as a model has no list: its links say so in one flag. Large inputs are read beside
the loop. What this gateway finds holds here at once, with or without a brain; the brain tells the others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Final

from mmsup.gateway.dispatch.request_fingerprint import Tensor, fingerprint, sent_tensors, total_bytes
from mmsup.ipc.errors import CallerError, MmsupError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import AddPoisonEntries, PoisonSuspected, RemovePoisonEntry, SuspectCleared
from mmsup.ipc.poison_policy import SUSPECT_CAUSES, PoisonEntry, PoisonList

if TYPE_CHECKING:
    from mmsup.gateway.dispatch.worker_link import WorkerLink

OFF_LOOP_BYTES: Final = 1 << 18
"""Inputs beyond this are read beside the loop."""
WaitForVerdict = Callable[["WorkerLink"], Awaitable[MmsupError]]
"""Why a life ended."""


class PoisonRequests:
    """Those of all models."""

    def __init__(self, executor: Executor, verdict: WaitForVerdict) -> None:
        self.send: Callable[[object], None] = lambda _: None
        """Tells the brain; control.py sets it."""
        self.on_change: Callable[[str], None] = lambda _: None
        """Told of each model whose list has become empty, or is no longer."""
        self._executor = executor
        self._wait_for_verdict = verdict
        self._policies: dict[str, PoisonList] = {}
        self._investigations: dict[tuple[int, int], asyncio.Task[None]] = {}

    def has_entries(self, model: str) -> bool:
        """Whether requests to this model must be held against its list."""
        return model in self._policies

    def find(self, model: str, print_: bytes) -> PoisonEntry | None:
        """What is known of this request."""
        suspects = self._policies.get(model)
        return suspects.find(print_, time.monotonic()) if suspects is not None else None

    async def fingerprint(self, model: str, version: str, inputs: Sequence[Tensor]) -> bytes:
        """The fingerprint of a request that has come, or was sent."""
        if total_bytes(inputs) <= OFF_LOOP_BYTES:
            return fingerprint(model, version, inputs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, fingerprint, model, version, inputs)

    # Deaths.

    def investigate(self, link: WorkerLink) -> None:
        """That life ended in the middle of a run with requests of ours."""
        task = asyncio.get_running_loop().create_task(self._investigate(link), name="inquest")
        self._investigations[link.worker_id] = task
        task.add_done_callback(lambda _: self._on_investigated(link))

    def _on_investigated(self, link: WorkerLink) -> None:
        self._investigations.pop(link.worker_id, None)
        link.last_batch = []  # whoever still knows this link does not keep its memory mapped

    async def wait_for_investigation(self, link: WorkerLink) -> None:
        """Returns when the inquest on that life is over."""
        task = self._investigations.get(link.worker_id)
        if task is not None:
            await asyncio.wait((task,))

    async def _investigate(self, link: WorkerLink) -> None:
        error = await self._wait_for_verdict(link)
        if error.code not in SUSPECT_CAUSES:
            return
        model, version = link.spec.name, link.spec.version
        prints = [
            await self.fingerprint(model, version, sent_tensors(each.message, each.input_slots))
            for each in link.last_batch
        ]
        suspects = self._policies.setdefault(model, PoisonList())
        cases = suspects.worker_exited(dict.fromkeys(prints), version, ran_alone=link.ran_alone, now_s=time.monotonic())
        failpoint("gateway.inquest", model)
        self.send(PoisonSuspected(*link.worker_id, model, tuple(cases), link.ran_alone))
        self.on_change(model)

    def on_survived(self, model: str, print_: bytes) -> None:
        """This suspect ran alone, and its worker has answered."""
        suspects = self._policies.get(model)
        if suspects is not None and suspects.clear_suspect(print_):
            self.send(SuspectCleared(model, print_))
            self._drop_if_empty(model)

    # The brain.

    def on_message(self, message: AddPoisonEntries | RemovePoisonEntry) -> None:
        """What the brain says of a model's list."""
        suspects = self._policies.setdefault(message.name, PoisonList())
        if isinstance(message, AddPoisonEntries):
            suspects.merge(message.entries)
        elif message.fingerprint:
            suspects.clear_suspect(message.fingerprint)
        else:
            del self._policies[message.name]
        failpoint("gateway.listed", message.name)
        self._drop_if_empty(message.name)

    # Time.

    def expire(self, now_s: float) -> None:
        """Forget what no longer holds; called now and then."""
        for model, suspects in list(self._policies.items()):
            suspects.expire(now_s)
            self._drop_if_empty(model)

    def _drop_if_empty(self, model: str) -> None:
        if model in self._policies and not self._policies[model]:
            del self._policies[model]
        self.on_change(model)

    async def close(self) -> None:
        """No inquest is of interest any more."""
        tasks = list(self._investigations.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def refusal_error(model: str, case: PoisonEntry) -> CallerError:
    """What a client is told whose request is blocked."""
    left_s = max(1, math.ceil(case.until_s - time.monotonic()))
    text = (
        f"request refused: these inputs ended the worker of model '{model}' version {case.version} {case.deaths} times,"
        f" the last time alone; they are refused for {left_s} s more"
    )
    return CallerError("request_quarantined", text, model=model)
