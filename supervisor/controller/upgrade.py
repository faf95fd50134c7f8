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
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages import keeper_control
from mmsup.supervisor.gateways.gateway_process import START_S, Gateway
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import COMING_UP, State
from mmsup.supervisor.state.checkpoint import UpgradeNote

if TYPE_CHECKING:
    from mmsup.supervisor.controller.controller import Brain

CODE: Final = "code"
PROCESSES: Final = "processes"
DONE: Final = "done"
LOADS_S: Final = 600.0
"""How long loads under way are waited for."""
TRIES: Final = 2
"""A gateway that dies before it serves may have been killed; two are a fault of the code."""
LEAVE_S: Final = 2.0
"""How long the answer waits for old gateways to leave; one with idle connections takes longer, and harms nobody."""
BRAINS: Final = 5

Say = Callable[[str], None]
Json = dict[str, Any]  # one JSON object


class Upgrades:
    """The present one, or the last."""

    def __init__(self, brain: Brain, note: UpgradeNote | None, keeper_life: int) -> None:
        self.note = note
        self._brain = brain
        self._keeper_life = keeper_life
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Say] = []
        self._over = asyncio.Event()
        self._answer: asyncio.Future[keeper_control.StepDown | keeper_control.NotUpgraded] | None = None
        if note is None or note.stage == DONE:
            self._over.set()

    async def ask(self, ticket: str, say: Say, *, force: bool) -> Json:
        """Begin, or join the one of this ticket; its result, MmsupError if it is refused or something stayed old."""
        note = self.note
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
        assert self.note is not None, "an upgrade ended that had not begun"
        return outcome(self.note)

    def resume(self) -> None:
        """An earlier brain began: go on."""
        note = self.note
        if note is None or note.stage == DONE:
            return
        if note.brains >= BRAINS:
            self._end(f"{note.brains} brains have fallen over it: the server's log has the reasons")
        else:
            self._begin(note)

    def answered(self, message: keeper_control.StepDown | keeper_control.NotUpgraded) -> None:
        """The keeper's answer to Upgrade."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)
        elif isinstance(message, keeper_control.StepDown):
            self._brain.over.set()

    def stop(self) -> None:
        """The server drains: what is not done will not be."""
        if not self._over.is_set():
            if self._task is not None:
                self._task.cancel()
            self._end("the server is draining")

    def _begin(self, note: UpgradeNote) -> None:
        self._over.clear()
        self._put(replace(note, brains=note.brains + 1))
        faultpoint("brain.upgrade_noted")
        self._brain.books.journal.record("upgrade_begun", f"stage {note.stage}")
        self._task = self._brain.task(self._run(note.stage), "upgrade")

    async def _run(self, stage: str) -> None:
        try:
            if stage == CODE:
                await self._change_code()
            else:
                await self._change_processes()
        except MmsupError as error:
            self._end(error.text)

    def _put(self, note: UpgradeNote) -> None:
        self.note = note
        self._brain.remember()

    @property
    def _now(self) -> UpgradeNote:
        assert self.note is not None, "an upgrade without a note"
        return self.note

    def _say(self, text: str) -> None:
        for say in list(self._listeners):
            say(text)

    def _end(self, refused: str = "") -> None:
        seconds = round(time.monotonic() - self._now.began_s, 3)
        note = replace(self._now, stage=DONE, refused=refused, seconds=seconds)
        self._put(note)
        faultpoint("brain.upgraded")
        failure = trouble(note)
        if failure:
            self._brain.books.journal.record("upgrade_failed", failure)
        else:
            self._brain.books.journal.record("upgraded", f"{note.done} processes followed")
        self._over.set()

    # The code.

    async def _change_code(self) -> None:
        brain = self._brain
        self._say("reading the repositories again")
        await brain.changes.look()
        if not brain.loads.is_idle:
            self._say("waiting for loads under way")
        await brain.moved.until(lambda: brain.loads.is_idle, LOADS_S)
        if not brain.loads.is_idle:
            raise CallerError("conflict", f"models are still being loaded after {LOADS_S:g} s")
        if not brain.is_remembered:
            raise ServerError("unavailable", "the models are so many that the next brain would not know them all")
        self._say("trying the code on disk")
        self._answer = asyncio.get_running_loop().create_future()
        brain.tell_keeper(keeper_control.Upgrade(self._now.force))
        faultpoint("brain.trial_said")
        answer = await self._answer
        if isinstance(answer, keeper_control.NotUpgraded):
            raise ServerError("unavailable", answer.text)
        self._say(
            "the keeper becomes the new program" if answer.renews else "the keeper's own code is the same: it stays"
        )
        self._say("another brain takes over")
        self._put(replace(self._now, stage=PROCESSES, renews=answer.renews, brains=0))
        faultpoint("brain.stepping_down")
        brain.over.set()

    # The processes.

    async def _change_processes(self) -> None:
        brain, note = self._brain, self._now
        self._say(f"brain {brain.generation} has taken over")
        if note.renews and self._keeper_life == note.keeper_life:
            self._keep("keeper", "it could not become another program: the server's log has the reason")
        await brain.moved.until(brain.gateways.are_up, START_S)
        while (gateway := self._next_gateway()) is not None:
            await self._follow(gateway)
        brain.gateways.spare.renew(note.began_s)  # not before: the old code's is good as long as the new has not served
        turns = asyncio.Semaphore(brain.settings.max_parallel_loads)
        async with asyncio.TaskGroup() as group:
            for worker in self._old_workers():
                group.create_task(self._renew(worker, turns))
        await brain.moved.until(lambda: not brain.gateways.others, LEAVE_S)
        if brain.gateways.others:
            self._say("old gateways have connections left, and leave when these do")
        self._end()

    def _next_gateway(self) -> Gateway | None:
        places, began_s = self._brain.gateways.places, self._now.began_s
        return next((each for each in places if each.spawned_s < began_s and each.life is not None), None)

    async def _follow(self, old: Gateway) -> None:
        gateways = self._brain.gateways
        for _ in range(TRIES):
            new = await self._successor()
            if old not in gateways.places:  # it has ended, and the spare has its place
                new.retire()
                return
            if new.serves:
                gateways.replace(old, new)
                faultpoint("brain.gateway_replaced")
                self._count_followed()
                old.retire()
                self._say(f"gateway {new.place} serves in the place of gateway {old.place}")
                return
            new.retire()
        raise ServerError("unavailable", "no gateway of the new code comes up; the old ones serve on, workers stay")

    async def _successor(self) -> Gateway:
        """One that serves, or has not come up."""
        gateways, until = self._brain.gateways, self._brain.moved.until
        while (new := gateways.successor()) is None:
            self._say("waiting for a gateway of the last upgrade to leave")
            await until(lambda: gateways.free_number() is not None)
        self._brain.remember()
        await until(lambda: new.serves or new not in gateways.others, START_S)
        return new

    def _old_workers(self) -> list[Instance]:
        note, models = self._now, self._brain.fleet.models
        editions = [current for name in sorted(models) if (current := models[name].current) is not None]
        return [
            each
            for edition in editions
            for each in edition.instances()
            if each.tenure is not None and each.tenure.spawned_s < note.began_s
            if each.state in COMING_UP or each.state is State.READY
            if _name(each) not in note.kept
        ]

    async def _renew(self, old: Instance, turns: asyncio.Semaphore) -> None:
        async with turns:
            name = _name(old)
            self._say(f"renewing {name}")
            why = await self._brain.renewals.renew(old)
            if why:
                self._keep(name, why)
            else:
                self._count_followed()

    def _count_followed(self) -> None:
        self._put(replace(self._now, done=self._now.done + 1))
        faultpoint("brain.followed")

    def _keep(self, name: str, why: str) -> None:
        self._say(f"{name} stays: {why}")
        self._put(replace(self._now, kept={**self._now.kept, name: why}))


def _fresh(ticket: str, keeper_life: int, *, force: bool) -> UpgradeNote:
    return UpgradeNote(
        ticket=ticket,
        force=force,
        began_s=time.monotonic(),
        stage=CODE,
        keeper_life=keeper_life,
        renews=False,
        done=0,
        kept={},
        refused="",
        seconds=0.0,
        brains=0,
    )


def trouble(note: UpgradeNote) -> str:
    """Why an upgrade is not all that was asked for; empty if it is."""
    kept = "; ".join(f"{name} stays: {why}" for name, why in note.kept.items())
    if note.refused:
        return f"not upgraded: {note.refused}" + (f"; {kept}" if kept else "")
    return f"upgraded, but not all: {kept}" if kept else ""


def outcome(note: UpgradeNote) -> Json:
    """The verb's result as JSON, or ServerError with all that stays as it was."""
    failure = trouble(note)
    if failure:
        raise ServerError("unavailable", failure)
    return {"keeper": "renewed" if note.renews else "same code", "followed": note.done, "seconds": note.seconds}


def _name(instance: Instance) -> str:
    spec = instance.release.spec
    return f"worker {instance.id} of {spec.name}/{spec.version}"
