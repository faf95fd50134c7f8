"""The keeper's children: who each of them is, by its token.

A new brain first hears of the children that there are. Workers find their places at once, gateways when all workers
have: what a gateway is told then is everything. A child that nobody remembers is ended. Last, gateways are started at
the places that have none.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Final

from mmsup.ipc.messages.keeper_control import ChildDescriptors, ChildExited, ForgetChild, SignalChild, SpawnFailed
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.instances import actions
from mmsup.supervisor.instances.context import KeeperSender
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.processes.launch_spec import parse_token

ChildMessage = ChildDescriptors | ChildExited | SpawnFailed
_WORKER: Final = "worker"


class ChildRouter:
    """Of one brain. `complete` is called once, when the children of the Inventory have all been introduced."""

    def __init__(
        self, keeper: KeeperSender, fleet: ModelSet, gateways: GatewayPool, expected: int, complete: Callable[[], None]
    ) -> None:
        self._keeper = keeper
        self._fleet = fleet
        self._gateways = gateways
        self._missing = expected
        self._complete = complete
        self._later: list[tuple[ChildMessage, list[int]]] = []
        self.unknown_children = 0
        """Children that nobody remembered."""

    def start(self) -> None:
        """Whoever was expected is here, if nobody was."""
        if self._missing == 0:
            self._introduced()

    def on_message(self, message: ChildMessage, descriptors: list[int]) -> None:
        """What the keeper says of a child."""
        if self._missing == 0:
            self._place(message, descriptors)
            return
        is_worker = message.token.startswith(_WORKER)
        if isinstance(message, ChildDescriptors) and is_worker:
            self._place(message, descriptors, adopted=True)
        else:
            self._later.append((message, descriptors))
        if isinstance(message, ChildDescriptors):
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

    def _place(self, message: ChildMessage, descriptors: list[int], *, adopted: bool = False) -> None:
        match parse_token(message.token):
            case "worker", number, generation:
                if adopted:
                    self._skip(number, generation)
                self._worker(self._instance(number, generation), message, descriptors, adopted=adopted)
            case "gateway", number, generation:
                self._gateways.reserve_generation(generation)
                gateway = self._gateways.find(number)
                if (
                    adopted
                    and isinstance(message, ChildDescriptors)
                    and gateway is not None
                    and gateway.process is None
                ):
                    gateway.generation = generation
                known = gateway is not None and gateway.generation == generation
                self._gateway(gateway if known else None, message, descriptors)
            case _:
                self._stray(message, descriptors)

    def _skip(self, number: int, generation: int) -> None:
        """A life that the last brain began and could tell nobody of is a stray: whoever comes next has another name."""
        self._fleet.next_instance_id = max(self._fleet.next_instance_id, number + 1)
        instance = self._fleet.instance(number)
        if instance is not None and instance.worker is None:
            instance.generation = max(instance.generation, generation)

    def _instance(self, number: int, generation: int) -> Instance | None:
        instance = self._fleet.instance(number)
        known = instance is not None and instance.generation == generation and instance.worker is not None
        return instance if known else None

    def _worker(
        self, instance: Instance | None, message: ChildMessage, descriptors: list[int], *, adopted: bool
    ) -> None:
        match message:
            case _ if instance is None:
                self._stray(message, descriptors)
            case ChildDescriptors(_, pid):
                instance.started(pid, descriptors)
                if not adopted:
                    actions.send_boot(instance)
            case ChildExited():
                instance.exited(message)
            case SpawnFailed(_, text):
                instance.start_failed(text)

    def _gateway(self, gateway: GatewayProcess | None, message: ChildMessage, descriptors: list[int]) -> None:
        match message:
            case _ if gateway is None:
                self._stray(message, descriptors)
            case ChildDescriptors(_, pid):
                gateway.on_started(pid, descriptors)
            case ChildExited():
                gateway.on_exited(message)
            case SpawnFailed(_, text):
                gateway.on_start_failed(text)

    def _stray(self, message: ChildMessage, descriptors: list[int]) -> None:
        close_fds(descriptors)
        if isinstance(message, ChildDescriptors):
            self.unknown_children += 1
            self._keeper.send(SignalChild(message.token, signal.SIGKILL, whole_session=True))
        elif isinstance(message, ChildExited):
            self._keeper.send(ForgetChild(message.token))
