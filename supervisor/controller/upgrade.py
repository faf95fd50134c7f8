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
from typing import Any, Final

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import RequestUpgrade, StepDown, UpgradeRefused
from mmsup.supervisor.controller import upgrade_record
from mmsup.supervisor.controller.components import ControllerContext, Gateways, Models
from mmsup.supervisor.controller.process_upgrade import ProcessUpgrade
from mmsup.supervisor.controller.upgrade_record import CODE, DONE, PROCESSES, UpgradeProgress, UpgradeRecord

PENDING_LOADS_S: Final = 600.0
MAX_CONTROLLERS: Final = 5


class Upgrader:
    def __init__(
        self, context: ControllerContext, models: Models, gateways: Gateways, record: UpgradeRecord | None
    ) -> None:
        self._context = context
        self._models = models
        self._gateways = gateways
        self._progress = UpgradeProgress(record, context.checkpoint)
        self._task: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()
        self._answer: asyncio.Future[StepDown | UpgradeRefused] | None = None
        if record is None or record.stage == DONE:
            self._finished.set()

    async def request(self, ticket: str, on_progress: Callable[[str], None], *, force: bool) -> dict[str, Any]:  # JSON
        """Start an upgrade or join the one of this ticket; its result, MmsupError if not everything was upgraded."""
        progress, record = self._progress, self._progress.record
        if self._gateways.context.is_stopping:
            raise ServerError("draining", "the server is draining")
        if record is None or (record.stage == DONE and record.ticket != ticket):
            keeper_generation = self._context.inventory.keeper_generation
            self._start(UpgradeRecord(ticket, force, time.monotonic(), keeper_generation))
        elif record.ticket != ticket:
            raise CallerError("conflict", "an upgrade is under way already")
        elif record.stage != DONE:
            on_progress("the upgrade goes on")  # tells a client that asks again that it was understood
        progress.listeners.append(on_progress)
        try:
            await self._finished.wait()
        finally:
            progress.listeners.remove(on_progress)
        return upgrade_record.result_of_upgrade(progress.present)

    def resume(self) -> None:
        record = self._progress.record
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

    def _start(self, record: UpgradeRecord) -> None:
        self._finished.clear()
        self._progress.record = record
        self._progress.update(controllers=record.controllers + 1)
        failpoint("brain.upgrade_noted")
        self._context.state_dir.event_log.record("upgrade_begun", f"stage {record.stage}")
        self._task = self._context.tasks.start(self._run(record.stage), "upgrade")

    async def _run(self, stage: str) -> None:
        try:
            if stage == CODE:
                await self._change_code()
            else:
                await ProcessUpgrade(self._progress, self._context, self._models, self._gateways).run()
                self._finish()
        except MmsupError as error:
            self._finish(error.text)

    def _finish(self, failure: str = "") -> None:
        progress, event_log = self._progress, self._context.state_dir.event_log
        progress.update(stage=DONE, failure=failure, seconds=round(time.monotonic() - progress.present.started_s, 3))
        failpoint("brain.upgraded")
        text = upgrade_record.failure_text(progress.present)
        if text:
            event_log.record("upgrade_failed", text)
        else:
            event_log.record("upgraded", f"{progress.present.replaced} processes followed")
        self._finished.set()

    async def _change_code(self) -> None:
        context, progress, loader = self._context, self._progress, self._models.loader
        progress.report("reading the repositories again")
        await self._models.watcher.check()
        if not loader.is_idle:
            progress.report("waiting for loads under way")
        await context.change_signal.wait_until(lambda: loader.is_idle, PENDING_LOADS_S)
        if not loader.is_idle:
            raise CallerError("conflict", f"models are still being loaded after {PENDING_LOADS_S:g} s")
        if not context.checkpoint.is_complete:
            text = "a model is too large for the checkpoint: the next controller would miss it"
            raise ServerError("unavailable", text)
        progress.report("trying the code on disk")
        self._answer = asyncio.get_running_loop().create_future()
        context.keeper.send(RequestUpgrade(progress.present.force))
        failpoint("brain.trial_said")
        answer = await self._answer
        if isinstance(answer, UpgradeRefused):
            raise ServerError("unavailable", answer.text)
        is_new = answer.replaces_keeper
        progress.report(
            "the keeper becomes the new program" if is_new else "the keeper's own code is the same: it stays"
        )
        progress.report("another controller takes over")
        progress.update(stage=PROCESSES, replaces_keeper=is_new, controllers=0)
        failpoint("brain.stepping_down")
        context.finished.set()
