"""The keeper's children: who each of them is, by its token.

A new brain first hears of the children that there are. Workers find their places at once, gateways when all workers
have: what a gateway is told then is everything. A child that nobody remembers is ended. Last, gateways are started at
the places that have none.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Final

from mmsup.ipc.messages import keeper_control
from mmsup.ipc.transport.control_channel import close_all
from mmsup.supervisor.gateways.gateway_process import Gateway
from mmsup.supervisor.gateways.pool import Gateways
from mmsup.supervisor.instances import actions
from mmsup.supervisor.instances.context import KeeperSays
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.models.model_set import Fleet
from mmsup.supervisor.processes.launch_spec import life_of

Told = keeper_control.Child | keeper_control.Exited | keeper_control.SpawnFailed
_WORKER: Final = "worker"


class Family:
    """Of one brain. `complete` is called once, when the children of the Inventory have all been introduced."""

    def __init__(
        self, keeper: KeeperSays, fleet: Fleet, gateways: Gateways, expected: int, complete: Callable[[], None]
    ) -> None:
        self._keeper = keeper
        self._fleet = fleet
        self._gateways = gateways
        self._missing = expected
        self._complete = complete
        self._later: list[tuple[Told, list[int]]] = []
        self.strays = 0
        """Children that nobody remembered."""

    def begin(self) -> None:
        """Whoever was expected is here, if nobody was."""
        if self._missing == 0:
            self._introduced()

    def hear(self, message: Told, descriptors: list[int]) -> None:
        """What the keeper says of a child."""
        if self._missing == 0:
            self._place(message, descriptors)
            return
        is_worker = message.token.startswith(_WORKER)
        if isinstance(message, keeper_control.Child) and is_worker:
            self._place(message, descriptors, adopted=True)
        else:
            self._later.append((message, descriptors))
        if isinstance(message, keeper_control.Child):
            self._missing -= 1
            if self._missing == 0:
                self._introduced()

    def _introduced(self) -> None:
        self._missing = 0
        self._complete()
        for message, descriptors in self._later:
            self._place(message, descriptors, adopted=True)
        self._later.clear()
        self._gateways.start()

    def _place(self, message: Told, descriptors: list[int], *, adopted: bool = False) -> None:
        match life_of(message.token):
            case "worker", number, generation:
                if adopted:
                    self._skip(number, generation)
                self._worker(self._instance(number, generation), message, descriptors, adopted=adopted)
            case "gateway", number, generation:
                self._gateways.meet(generation)
                gateway = self._gateways.at(number)
                if (
                    adopted
                    and isinstance(message, keeper_control.Child)
                    and gateway is not None
                    and gateway.life is None
                ):
                    gateway.generation = generation
                known = gateway is not None and gateway.generation == generation
                self._gateway(gateway if known else None, message, descriptors)
            case _:
                self._stray(message, descriptors)

    def _skip(self, number: int, generation: int) -> None:
        """A life that the last brain began and could tell nobody of is a stray: whoever comes next has another name."""
        self._fleet.next_instance = max(self._fleet.next_instance, number + 1)
        instance = self._fleet.instance(number)
        if instance is not None and instance.tenure is None:
            instance.generation = max(instance.generation, generation)

    def _instance(self, number: int, generation: int) -> Instance | None:
        instance = self._fleet.instance(number)
        known = instance is not None and instance.generation == generation and instance.tenure is not None
        return instance if known else None

    def _worker(self, instance: Instance | None, message: Told, descriptors: list[int], *, adopted: bool) -> None:
        match message:
            case _ if instance is None:
                self._stray(message, descriptors)
            case keeper_control.Child(_, pid):
                instance.born(pid, descriptors)
                if not adopted:
                    actions.boot(instance)
            case keeper_control.Exited():
                instance.ended(message)
            case keeper_control.SpawnFailed(_, text):
                instance.unborn(text)

    def _gateway(self, gateway: Gateway | None, message: Told, descriptors: list[int]) -> None:
        match message:
            case _ if gateway is None:
                self._stray(message, descriptors)
            case keeper_control.Child(_, pid):
                gateway.born(pid, descriptors)
            case keeper_control.Exited():
                gateway.ended(message)
            case keeper_control.SpawnFailed(_, text):
                gateway.unborn(text)

    def _stray(self, message: Told, descriptors: list[int]) -> None:
        close_all(descriptors)
        if isinstance(message, keeper_control.Child):
            self.strays += 1
            self._keeper.say(keeper_control.Signal(message.token, signal.SIGKILL, group=True))
        elif isinstance(message, keeper_control.Exited):
            self._keeper.say(keeper_control.Forget(message.token))
