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

from mmsup.gateway.dispatch.request_fingerprint import Tensor, fingerprint, inputs_of, size_bytes
from mmsup.ipc.errors import CallerError, MmsupError
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages.gateway_control import Lived, Pardon, Quarantine, Suspected
from mmsup.ipc.poison_policy import CAUSES, Case, Suspects

if TYPE_CHECKING:
    from mmsup.gateway.dispatch.worker_link import Link

ASIDE_BYTES: Final = 1 << 18
"""Inputs beyond this are read beside the loop."""
Verdict = Callable[["Link"], Awaitable[MmsupError]]
"""Why a life ended."""


class Lists:
    """Those of all models."""

    def __init__(self, executor: Executor, verdict: Verdict) -> None:
        self.say: Callable[[object], None] = lambda _: None
        """Tells the brain; control.py sets it."""
        self.on_change: Callable[[str], None] = lambda _: None
        """Told of each model whose list has become empty, or is no longer."""
        self._executor = executor
        self._verdict = verdict
        self._models: dict[str, Suspects] = {}
        self._inquests: dict[tuple[int, int], asyncio.Task[None]] = {}

    def has(self, model: str) -> bool:
        """Whether requests to this model must be held against its list."""
        return model in self._models

    def find(self, model: str, print_: bytes) -> Case | None:
        """What is known of this request."""
        suspects = self._models.get(model)
        return suspects.find(print_, time.monotonic()) if suspects is not None else None

    async def fingerprint(self, model: str, version: str, inputs: Sequence[Tensor]) -> bytes:
        """The fingerprint of a request that has come, or was sent."""
        if size_bytes(inputs) <= ASIDE_BYTES:
            return fingerprint(model, version, inputs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, fingerprint, model, version, inputs)

    # Deaths.

    def inquire(self, link: Link) -> None:
        """That life ended in the middle of a run with requests of ours."""
        task = asyncio.get_running_loop().create_task(self._inquire(link), name="inquest")
        self._inquests[link.life] = task
        task.add_done_callback(lambda _: self._closed(link))

    def _closed(self, link: Link) -> None:
        self._inquests.pop(link.life, None)
        link.last_run = []  # whoever still knows this link does not keep its memory mapped

    async def found(self, link: Link) -> None:
        """Returns when the inquest on that life is over."""
        task = self._inquests.get(link.life)
        if task is not None:
            await asyncio.wait((task,))

    async def _inquire(self, link: Link) -> None:
        error = await self._verdict(link)
        if error.code not in CAUSES:
            return
        model, version = link.spec.name, link.spec.version
        prints = [await self.fingerprint(model, version, inputs_of(each.request, each.slots)) for each in link.last_run]
        suspects = self._models.setdefault(model, Suspects())
        cases = suspects.died(dict.fromkeys(prints), version, alone=link.ran_alone, now_s=time.monotonic())
        faultpoint("gateway.inquest", model)
        self.say(Suspected(*link.life, model, tuple(cases), link.ran_alone))
        self.on_change(model)

    def lived(self, model: str, print_: bytes) -> None:
        """This suspect ran alone, and its worker has answered."""
        suspects = self._models.get(model)
        if suspects is not None and suspects.lived(print_):
            self.say(Lived(model, print_))
            self._tidy(model)

    # The brain.

    def hear(self, message: Quarantine | Pardon) -> None:
        """What the brain says of a model's list."""
        suspects = self._models.setdefault(message.name, Suspects())
        if isinstance(message, Quarantine):
            suspects.add(message.cases)
        elif message.fingerprint:
            suspects.lived(message.fingerprint)
        else:
            del self._models[message.name]
        faultpoint("gateway.listed", message.name)
        self._tidy(message.name)

    # Time.

    def expire(self, now_s: float) -> None:
        """Forget what no longer holds; called now and then."""
        for model, suspects in list(self._models.items()):
            suspects.expire(now_s)
            self._tidy(model)

    def _tidy(self, model: str) -> None:
        if model in self._models and not self._models[model]:
            del self._models[model]
        self.on_change(model)

    async def close(self) -> None:
        """No inquest is of interest any more."""
        tasks = list(self._inquests.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def refusal(model: str, case: Case) -> CallerError:
    """What a client is told whose request is blocked."""
    left_s = max(1, math.ceil(case.until_s - time.monotonic()))
    text = (
        f"request refused: these inputs ended the worker of model '{model}' version {case.version} {case.deaths} times,"
        f" the last time alone; they are refused for {left_s} s more"
    )
    return CallerError("request_quarantined", text, model=model)
