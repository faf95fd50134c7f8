"""Poison requests: finds the requests that may have killed a worker, and keeps each model's list of them.

Covers: the investigation after a worker's exit (which requests were in its running batch, and whether they may be the
cause), the lists of all models, the messages about them from and to the controller.
Does not cover: the rules (ipc/poison_policy.py); checking a request against a list (dispatched_request.py).

Suspects run alone and blocked requests are refused. While a model has no list nothing is compared: each link has a flag
for it. Large inputs are read off the event loop. What this gateway finds applies here at once, with or without a
controller; the controller sends it to the other gateways.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from mmsup.gateway.dispatch.exit_verdicts import Verdicts
from mmsup.gateway.dispatch.in_flight import InFlightRequest
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.protocol.request_fingerprint import Tensor, fingerprint, sent_tensors, total_bytes
from mmsup.ipc.errors import CallerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import AddPoisonEntries, PoisonSuspected, RemovePoisonEntry, SuspectCleared
from mmsup.ipc.poison_policy import SUSPECT_CAUSES, PoisonEntry, PoisonList

OFF_LOOP_BYTES: Final = 1 << 18
"""Inputs larger than this are read off the event loop."""


class PoisonRequests:
    def __init__(self, executor: Executor, verdicts: Verdicts) -> None:
        self.send: Callable[[object], None] = lambda _: None
        """Sends a message to the controller; set by controller_channel.py."""
        self.on_change: Callable[[str], None] = lambda _: None
        """Called with each model whose list may have become empty, or no longer is."""
        self._executor = executor
        self._verdicts = verdicts
        self._lists: dict[str, PoisonList] = {}
        self._investigations: dict[tuple[int, int], asyncio.Task[None]] = {}

    def has_entries(self, model: str) -> bool:
        """Whether requests to this model must be compared with its list."""
        return model in self._lists

    def find(self, model: str, digest: bytes) -> PoisonEntry | None:
        entries = self._lists.get(model)
        return entries.find(digest, time.monotonic()) if entries is not None else None

    async def fingerprint(self, model: str, version: str, inputs: Sequence[Tensor]) -> bytes:
        if total_bytes(inputs) <= OFF_LOOP_BYTES:
            return fingerprint(model, version, inputs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, fingerprint, model, version, inputs)

    # Exits of workers.

    def investigate(self, link: WorkerLink, batch: list[InFlightRequest], *, ran_alone: bool) -> None:
        """The worker exited with these requests of this gateway in the batch that was running."""
        coroutine = self._investigate(link, batch, ran_alone=ran_alone)
        task = self._investigations[link.worker_id] = asyncio.create_task(coroutine, name="investigation")
        task.add_done_callback(lambda _: self._investigations.pop(link.worker_id, None))

    async def wait_for_investigation(self, link: WorkerLink) -> None:
        task = self._investigations.get(link.worker_id)
        if task is not None:
            await asyncio.wait((task,))

    async def _investigate(self, link: WorkerLink, batch: list[InFlightRequest], *, ran_alone: bool) -> None:
        model, version = link.spec.name, link.spec.version
        error = await self._verdicts.wait(link.worker_id, model)
        if error.code not in SUSPECT_CAUSES:
            return
        digests = [
            await self.fingerprint(model, version, sent_tensors(each.message, each.input_slots)) for each in batch
        ]
        entries = self._lists.setdefault(model, PoisonList()).worker_exited(
            dict.fromkeys(digests), version, ran_alone=ran_alone, now_s=time.monotonic()
        )
        failpoint("gateway.inquest", model)
        self.send(PoisonSuspected(*link.worker_id, model, tuple(entries), ran_alone))
        self.on_change(model)

    def on_survived(self, model: str, digest: bytes) -> None:
        """A suspect ran alone and its worker answered."""
        entries = self._lists.get(model)
        if entries is not None and entries.clear_suspect(digest):
            self.send(SuspectCleared(model, digest))
            self._drop_if_empty(model)

    def on_message(self, message: AddPoisonEntries | RemovePoisonEntry) -> None:
        """The controller changes a model's list."""
        entries = self._lists.setdefault(message.name, PoisonList())
        if isinstance(message, AddPoisonEntries):
            entries.merge(message.entries)
        elif message.fingerprint:
            entries.clear_suspect(message.fingerprint)
        else:
            del self._lists[message.name]
        failpoint("gateway.listed", message.name)
        self._drop_if_empty(message.name)

    def expire(self, now_s: float) -> None:
        """Remove expired entries; called periodically."""
        for model, entries in list(self._lists.items()):
            entries.expire(now_s)
            self._drop_if_empty(model)

    def _drop_if_empty(self, model: str) -> None:
        if model in self._lists and not self._lists[model]:
            del self._lists[model]
        self.on_change(model)

    async def close(self) -> None:
        tasks = list(self._investigations.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def refusal_error(model: str, entry: PoisonEntry) -> CallerError:
    left_s = max(1, math.ceil(entry.until_s - time.monotonic()))
    text = f"request refused: these inputs ended the worker of model '{model}' version {entry.version}"
    text = f"{text} {entry.deaths} times, the last time alone; they are refused for {left_s} s more"
    return CallerError("request_quarantined", text, model=model)
