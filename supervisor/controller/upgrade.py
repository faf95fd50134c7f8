"""The hot upgrade: every process is replaced by one that runs the code on disk, and no request fails.

    code        The repositories are scanned, loads under way are waited for, and the keeper tries the code in a child.
                Then this controller exits. The keeper re-executes itself if its own code has changed, and starts the
                next controller.
    processes   Gateways and workers are replaced (process_upgrade.py).
    done        The result is kept for a client that asks again.

The progress is part of the checkpoint. Old is what was started before the upgrade; so the next controller goes on with
what is left, and an upgrade after a failed one replaces what had stayed. A client gives its request a ticket, with
which it can ask again: the upgrade outlives the controller that was asked first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import RequestUpgrade, StepDown, UpgradeRefused
from mmsup.supervisor.controller.components import ControllerContext, Gateways, Models, Storage
from mmsup.supervisor.controller.process_upgrade import ProcessUpgrade
from mmsup.supervisor.controller.upgrade_record import (
    CODE,
    DONE,
    PROCESSES,
    UpgradeRecord,
    failure_text,
    new_record,
    result_of_upgrade,
)

PENDING_LOADS_S: Final = 600.0
"""How long loads under way are waited for."""
MAX_CONTROLLERS: Final = 5
KEY: Final = "upgrade"
"""Of the record in the checkpoint."""

SendProgress = Callable[[str], None]


class Upgrader:
    def __init__(
        self,
        context: ControllerContext,
        storage: Storage,
        models: Models,
        gateways: Gateways,
        record: UpgradeRecord | None,
    ) -> None:
        self.record = record
        self._context = context
        self._storage = storage
        self._models = models
        self._gateways = gateways
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[SendProgress] = []
        self._finished = asyncio.Event()
        self._answer: asyncio.Future[StepDown | UpgradeRefused] | None = None
        if record is None or record.stage == DONE:
            self._finished.set()

    async def request(self, ticket: str, on_progress: SendProgress, *, force: bool) -> dict[str, Any]:  # JSON
        """Start an upgrade or join the one of this ticket; its result, MmsupError if not everything was upgraded."""
        record = self.record
        if self._gateways.context.is_stopping:
            raise ServerError("draining", "the server is draining")
        if record is None or (record.stage == DONE and record.ticket != ticket):
            self._start(new_record(ticket, self._context.inventory.keeper_generation, force=force))
        elif record.ticket != ticket:
            raise CallerError("conflict", "an upgrade is under way already")
        elif record.stage != DONE:
            on_progress("the upgrade goes on")  # tells a client that asks again that it was understood
        self._listeners.append(on_progress)
        try:
            await self._finished.wait()
        finally:
            self._listeners.remove(on_progress)
        return result_of_upgrade(self.present)

    def resume(self) -> None:
        record = self.record
        if record is None or record.stage == DONE:
            return
        if record.controllers >= MAX_CONTROLLERS:
            self._finish(f"{record.controllers} controllers have crashed at it: the server's log has the reasons")
        else:
            self._start(record)

    def on_keeper_answer(self, message: StepDown | UpgradeRefused) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)
        elif isinstance(message, StepDown):
            self._context.finished.set()

    def stop(self) -> None:
        """The server is draining: give the upgrade up."""
        if not self._finished.is_set():
            if self._task is not None:
                self._task.cancel()
            self._finish("the server is draining")

    @property
    def present(self) -> UpgradeRecord:
        assert self.record is not None, "an upgrade without a record"
        return self.record

    def update(self, **changes: Any) -> None:  # fields of the record
        self.record = replace(self.present, **changes)
        self._storage.checkpoint.save(KEY, self.record)

    def report(self, text: str) -> None:
        for listener in list(self._listeners):
            listener(text)

    def _start(self, record: UpgradeRecord) -> None:
        self._finished.clear()
        self.record = record
        self.update(controllers=record.controllers + 1)
        failpoint("brain.upgrade_noted")
        self._storage.event_log.record("upgrade_begun", f"stage {record.stage}")
        self._task = self._context.tasks.start(self._run(record.stage), "upgrade")

    async def _run(self, stage: str) -> None:
        try:
            if stage == CODE:
                await self._change_code()
            else:
                await ProcessUpgrade(self, self._context, self._models, self._gateways).run()
                self._finish()
        except MmsupError as error:
            self._finish(error.text)

    def _finish(self, failure: str = "") -> None:
        self.update(stage=DONE, failure=failure, seconds=round(time.monotonic() - self.present.started_s, 3))
        failpoint("brain.upgraded")
        text = failure_text(self.present)
        if text:
            self._storage.event_log.record("upgrade_failed", text)
        else:
            self._storage.event_log.record("upgraded", f"{self.present.replaced} processes followed")
        self._finished.set()

    async def _change_code(self) -> None:
        context, loader = self._context, self._models.loader
        self.report("reading the repositories again")
        await self._models.watcher.check()
        if not loader.is_idle:
            self.report("waiting for loads under way")
        await context.change_signal.wait_until(lambda: loader.is_idle, PENDING_LOADS_S)
        if not loader.is_idle:
            raise CallerError("conflict", f"models are still being loaded after {PENDING_LOADS_S:g} s")
        if not self._storage.checkpoint.is_complete:
            raise ServerError(
                "unavailable", "a model is too large for the checkpoint: the next controller would miss it"
            )
        self.report("trying the code on disk")
        self._answer = asyncio.get_running_loop().create_future()
        context.keeper.send(RequestUpgrade(self.present.force))
        failpoint("brain.trial_said")
        answer = await self._answer
        if isinstance(answer, UpgradeRefused):
            raise ServerError("unavailable", answer.text)
        is_new = answer.replaces_keeper
        self.report("the keeper becomes the new program" if is_new else "the keeper's own code is the same: it stays")
        self.report("another controller takes over")
        self.update(stage=PROCESSES, replaces_keeper=is_new, controllers=0)
        failpoint("brain.stepping_down")
        context.finished.set()
