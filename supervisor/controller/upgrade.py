"""The hot upgrade: every process but the keeper's is followed by one of the code on disk, and no request notices.

    code        repositories are read again, loads come to their end, the code is tried by the keeper in a child; then
                this brain leaves. The keeper becomes the new program, if it is another one, and starts the next brain
    processes   gateways, one by one: the new one serves before the old one is retired. Then workers, as many at a time
                as may load: the new one is ready before the old one drains (renewal.py)
    done        what it came to is kept, for whoever asks again

How far it is stands in what brains remember. What is old is what was started before the upgrade began; so a brain that
takes over in the middle goes on with what is left, and asking again after a failure renews what had stayed.
Whoever asks gives a ticket, and may ask again with it: the question outlives the brain that was asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import RequestUpgrade, StepDown, UpgradeRefused
from mmsup.supervisor.gateways.gateway_process import START_S, GatewayProcess
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState
from mmsup.supervisor.state.checkpoint import UpgradeRecord

if TYPE_CHECKING:
    from mmsup.supervisor.controller.controller import Controller

CODE: Final = "code"
PROCESSES: Final = "processes"
DONE: Final = "done"
PENDING_LOADS_S: Final = 600.0
"""How long loads under way are waited for."""
MAX_GATEWAY_STARTS: Final = 2
"""A gateway that dies before it serves may have been killed; two are a fault of the code."""
OLD_GATEWAY_EXIT_S: Final = 2.0
"""How long the answer waits for old gateways to leave; one with idle connections takes longer, and harms nobody."""
MAX_CONTROLLERS: Final = 5

SendProgress = Callable[[str], None]
Json = dict[str, Any]  # one JSON object


class Upgrader:
    """The present one, or the last."""

    def __init__(self, brain: Controller, note: UpgradeRecord | None, keeper_life: int) -> None:
        self.record = note
        self._brain = brain
        self._keeper_life = keeper_life
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[SendProgress] = []
        self._over = asyncio.Event()
        self._answer: asyncio.Future[StepDown | UpgradeRefused] | None = None
        if note is None or note.stage == DONE:
            self._over.set()

    async def request(self, ticket: str, say: SendProgress, *, force: bool) -> Json:
        """Begin, or join the one of this ticket; its result, MmsupError if it is refused or something stayed old."""
        note = self.record
        if self._brain.stopping:
            raise ServerError("draining", "the server is draining")
        if note is None or (note.stage == DONE and note.ticket != ticket):
            self._begin(_fresh(ticket, self._keeper_life, force=force))
        elif note.ticket != ticket:
            raise CallerError("conflict", "an upgrade is under way already")
        elif note.stage != DONE:
            say("the upgrade goes on")  # who is cut off again knows by this that it was heard, and asks the next brain
        self._listeners.append(say)
        try:
            await self._over.wait()
        finally:
            self._listeners.remove(say)
        assert self.record is not None, "an upgrade ended that had not begun"
        return result_of_upgrade(self.record)

    def resume(self) -> None:
        """An earlier brain began: go on."""
        note = self.record
        if note is None or note.stage == DONE:
            return
        if note.controllers >= MAX_CONTROLLERS:
            self._end(f"{note.controllers} brains have fallen over it: the server's log has the reasons")
        else:
            self._begin(note)

    def on_keeper_answer(self, message: StepDown | UpgradeRefused) -> None:
        """The keeper's answer to Upgrade."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)
        elif isinstance(message, StepDown):
            self._brain.finished.set()

    def stop(self) -> None:
        """The server drains: what is not done will not be."""
        if not self._over.is_set():
            if self._task is not None:
                self._task.cancel()
            self._end("the server is draining")

    def _begin(self, note: UpgradeRecord) -> None:
        self._over.clear()
        self._put(replace(note, controllers=note.controllers + 1))
        failpoint("brain.upgrade_noted")
        self._brain.state_dir.event_log.record("upgrade_begun", f"stage {note.stage}")
        self._task = self._brain.start_task(self._run(note.stage), "upgrade")

    async def _run(self, stage: str) -> None:
        try:
            if stage == CODE:
                await self._change_code()
            else:
                await self._change_processes()
        except MmsupError as error:
            self._end(error.text)

    def _put(self, note: UpgradeRecord) -> None:
        self.record = note
        self._brain.save_checkpoint()

    @property
    def _now(self) -> UpgradeRecord:
        assert self.record is not None, "an upgrade without a note"
        return self.record

    def _say(self, text: str) -> None:
        for say in list(self._listeners):
            say(text)

    def _end(self, refused: str = "") -> None:
        seconds = round(time.monotonic() - self._now.started_s, 3)
        note = replace(self._now, stage=DONE, failure=refused, seconds=seconds)
        self._put(note)
        failpoint("brain.upgraded")
        failure = failure_text(note)
        if failure:
            self._brain.state_dir.event_log.record("upgrade_failed", failure)
        else:
            self._brain.state_dir.event_log.record("upgraded", f"{note.replaced} processes followed")
        self._over.set()

    # The code.

    async def _change_code(self) -> None:
        brain = self._brain
        self._say("reading the repositories again")
        await brain.repository_watcher.check()
        if not brain.loader.is_idle:
            self._say("waiting for loads under way")
        await brain.change_signal.wait_until(lambda: brain.loader.is_idle, PENDING_LOADS_S)
        if not brain.loader.is_idle:
            raise CallerError("conflict", f"models are still being loaded after {PENDING_LOADS_S:g} s")
        if not brain.is_checkpoint_complete:
            raise ServerError("unavailable", "the models are so many that the next brain would not know them all")
        self._say("trying the code on disk")
        self._answer = asyncio.get_running_loop().create_future()
        brain.send_to_keeper(RequestUpgrade(self._now.force))
        failpoint("brain.trial_said")
        answer = await self._answer
        if isinstance(answer, UpgradeRefused):
            raise ServerError("unavailable", answer.text)
        self._say(
            "the keeper becomes the new program"
            if answer.replaces_keeper
            else "the keeper's own code is the same: it stays"
        )
        self._say("another brain takes over")
        self._put(replace(self._now, stage=PROCESSES, replaces_keeper=answer.replaces_keeper, controllers=0))
        failpoint("brain.stepping_down")
        brain.finished.set()

    # The processes.

    async def _change_processes(self) -> None:
        brain, note = self._brain, self._now
        self._say(f"brain {brain.generation} has taken over")
        if note.replaces_keeper and self._keeper_life == note.keeper_generation:
            self._keep("keeper", "it could not become another program: the server's log has the reason")
        await brain.change_signal.wait_until(brain.gateways.are_up, START_S)
        while (gateway := self._next_gateway()) is not None:
            await self._follow(gateway)
        brain.gateways.standby.replace_older(
            note.started_s
        )  # not before: the old code's is good as long as the new has not served
        turns = asyncio.Semaphore(brain.settings.max_parallel_loads)
        async with asyncio.TaskGroup() as group:
            for worker in self._old_workers():
                group.create_task(self._renew(worker, turns))
        await brain.change_signal.wait_until(lambda: not brain.gateways.unseated, OLD_GATEWAY_EXIT_S)
        if brain.gateways.unseated:
            self._say("old gateways have connections left, and leave when these do")
        self._end()

    def _next_gateway(self) -> GatewayProcess | None:
        places, began_s = self._brain.gateways.seats, self._now.started_s
        return next((each for each in places if each.spawned_s < began_s and each.process is not None), None)

    async def _follow(self, old: GatewayProcess) -> None:
        gateways = self._brain.gateways
        for _ in range(MAX_GATEWAY_STARTS):
            new = await self._successor()
            if old not in gateways.seats:  # it has ended, and the spare has its place
                new.retire()
                return
            if new.is_serving:
                gateways.replace(old, new)
                failpoint("brain.gateway_replaced")
                self._count_followed()
                old.retire()
                self._say(f"gateway {new.number} serves in the place of gateway {old.number}")
                return
            new.retire()
        raise ServerError("unavailable", "no gateway of the new code comes up; the old ones serve on, workers stay")

    async def _successor(self) -> GatewayProcess:
        """One that serves, or has not come up."""
        gateways, until = self._brain.gateways, self._brain.change_signal.wait_until
        while (new := gateways.start_successor()) is None:
            self._say("waiting for a gateway of the last upgrade to leave")
            await until(lambda: gateways.free_number() is not None)
        self._brain.save_checkpoint()
        await until(lambda: new.is_serving or new not in gateways.unseated, START_S)
        return new

    def _old_workers(self) -> list[Instance]:
        note, models = self._now, self._brain.model_set.models
        editions = [current for name in sorted(models) if (current := models[name].active) is not None]
        return [
            each
            for edition in editions
            for each in edition.instances()
            if each.worker is not None and each.worker.spawned_s < note.started_s
            if each.state in STARTING_UP or each.state is InstanceState.READY
            if _name(each) not in note.kept
        ]

    async def _renew(self, old: Instance, turns: asyncio.Semaphore) -> None:
        async with turns:
            name = _name(old)
            self._say(f"renewing {name}")
            why = await self._brain.rolling_replacement.replace(old)
            if why:
                self._keep(name, why)
            else:
                self._count_followed()

    def _count_followed(self) -> None:
        self._put(replace(self._now, replaced=self._now.replaced + 1))
        failpoint("brain.followed")

    def _keep(self, name: str, why: str) -> None:
        self._say(f"{name} stays: {why}")
        self._put(replace(self._now, kept={**self._now.kept, name: why}))


def _fresh(ticket: str, keeper_life: int, *, force: bool) -> UpgradeRecord:
    return UpgradeRecord(
        ticket=ticket,
        force=force,
        started_s=time.monotonic(),
        stage=CODE,
        keeper_generation=keeper_life,
        replaces_keeper=False,
        replaced=0,
        kept={},
        failure="",
        seconds=0.0,
        controllers=0,
    )


def failure_text(note: UpgradeRecord) -> str:
    """Why an upgrade is not all that was asked for; empty if it is."""
    kept = "; ".join(f"{name} stays: {why}" for name, why in note.kept.items())
    if note.failure:
        return f"not upgraded: {note.failure}" + (f"; {kept}" if kept else "")
    return f"upgraded, but not all: {kept}" if kept else ""


def result_of_upgrade(note: UpgradeRecord) -> Json:
    """The verb's result as JSON, or ServerError with all that stays as it was."""
    failure = failure_text(note)
    if failure:
        raise ServerError("unavailable", failure)
    return {
        "keeper": "renewed" if note.replaces_keeper else "same code",
        "followed": note.replaced,
        "seconds": note.seconds,
    }


def _name(instance: Instance) -> str:
    spec = instance.revision.spec
    return f"worker {instance.id} of {spec.name}/{spec.version}"
