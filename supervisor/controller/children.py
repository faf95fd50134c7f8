"""Receives everything that the keeper sends, and routes what concerns a child process to its instance or gateway.

A new controller first receives the inventory, the checkpoint of the one before, and all children that there are. Until
it is made, messages are queued. Then workers are adopted at once, gateways after all workers: the state that a gateway
is sent then is complete. A child that no record knows is killed. Last, gateways are started in seats that have none.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.messages import keeper_control
from mmsup.ipc.messages.keeper_control import ChildDescriptors, ChildExited, KeeperInventory, NotForked, SpawnFailed
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.gateways.rpc_front import RpcFront
from mmsup.supervisor.groups.pool import GroupPool
from mmsup.supervisor.instances import actions, lifecycle_events, worker_exit, worker_messages
from mmsup.supervisor.instances.context import KeeperSender
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.processes.child_process import NO_DESCRIPTORS
from mmsup.supervisor.processes.launch_spec import parse_token
from mmsup.supervisor.zygotes.pool import ZygotePool

ChildMessage = ChildDescriptors | ChildExited | SpawnFailed | NotForked
_WORKERS: Final = ("worker.", "host.")


@dataclass(frozen=True, slots=True)
class RouterTargets:
    keeper: KeeperSender
    model_set: ModelSet
    pool: GatewayPool
    rpc_front: RpcFront
    zygotes: ZygotePool
    groups: GroupPool
    on_workers_adopted: Callable[[], None]
    """All workers are known; gateways follow."""
    on_complete: Callable[[], None]
    """All children are known."""
    on_request: Callable[[Any], None]
    """Gets the messages that are about no child."""


class ChildRouter:
    def __init__(self) -> None:
        self.unknown_children = 0
        """How many were killed because no record knew them."""
        self._targets: RouterTargets | None = None
        self._inventory: KeeperInventory | None = None
        self._checkpoint: dict[str, str] = {}
        self._missing_parts = 0
        self._missing_children = 0
        self._queued: list[tuple[Any, list[int]]] = []
        self._received = asyncio.Event()

    async def receive_inventory(self) -> tuple[KeeperInventory, dict[str, str]]:
        """The first messages of the keeper: its inventory, and the checkpoint of the controller before by key."""
        await self._received.wait()
        assert self._inventory is not None, "an inventory without a message"
        return self._inventory, self._checkpoint

    def start(self, targets: RouterTargets) -> None:
        """Route messages from now on, those first that have come already."""
        self._targets = targets
        queued, self._queued = self._queued, []
        if self._missing_children == 0:
            self._complete(targets)
        for message, descriptors in queued:
            self.on_message(message, descriptors)

    def on_message(self, message: Any, descriptors: list[int]) -> None:  # one of FROM_KEEPER
        """The keeper has sent a message; the descriptors are ours."""
        targets = self._targets
        if targets is None:
            self._on_early_message(message, descriptors)
        elif not isinstance(message, ChildMessage):
            targets.on_request(message)
        elif self._missing_children == 0:
            self._route(targets, message, descriptors)
        else:
            self._adopt(targets, message, descriptors)

    def _on_early_message(self, message: Any, descriptors: list[int]) -> None:  # as above
        match message:
            case KeeperInventory():
                self._inventory = message
                self._missing_parts, self._missing_children = message.checkpoint_parts, message.children
            case keeper_control.CheckpointPart(entries):
                self._checkpoint |= entries
                self._missing_parts -= 1
            case _:
                self._queued.append((message, descriptors))
        if self._inventory is not None and self._missing_parts == 0:
            self._received.set()

    def _adopt(self, targets: RouterTargets, message: ChildMessage, descriptors: list[int]) -> None:
        """One of the children that there were before this controller: a worker at once, others after all workers."""
        if isinstance(message, ChildDescriptors) and message.token.startswith(_WORKERS):
            self._route(targets, message, descriptors, adopted=True)
        else:
            self._queued.append((message, descriptors))
        if isinstance(message, ChildDescriptors):
            self._missing_children -= 1
            if self._missing_children == 0:
                self._complete(targets)

    def _complete(self, targets: RouterTargets) -> None:
        targets.on_workers_adopted()
        queued, self._queued = self._queued, []
        for message, descriptors in queued:
            self._route(targets, message, descriptors, adopted=True)
        targets.on_complete()
        targets.zygotes.open()

    def _route(
        self, targets: RouterTargets, message: ChildMessage, descriptors: list[int], *, adopted: bool = False
    ) -> None:
        match parse_token(message.token):
            case "worker", number, generation:
                instance = _instance(targets.model_set, number, generation, adopted=adopted)
                if instance is not None:
                    _send_to_instance(instance, message, descriptors, adopted=adopted)
                    self._kill_if_lost(targets, message, descriptors)
                    return
            case "gateway", number, generation:
                adopted = adopted and isinstance(message, ChildDescriptors)
                gateway = _gateway(targets.pool, number, generation, adopted=adopted)
                if gateway is not None:
                    _send_to_gateway(gateway, message, descriptors)
                    self._kill_if_lost(targets, message, descriptors)
                    return
            case "host", number, _ if not isinstance(message, NotForked):
                targets.model_set.next_instance_id = max(targets.model_set.next_instance_id, number + 1)
                targets.groups.on_message(number, message, descriptors)
                return
            case "front", number, generation if not isinstance(message, NotForked):
                targets.rpc_front.on_message(number, generation, message, descriptors)
                return
            case "zygote", number, generation:
                _send_to_zygotes(targets.zygotes, number, generation, message, descriptors)
                return
            case _:
                pass
        close_fds(descriptors)
        if isinstance(message, ChildDescriptors):
            self.unknown_children += 1
            targets.keeper.send(keeper_control.SignalChild(message.token, signal.SIGKILL, whole_session=True))
        elif isinstance(message, ChildExited):
            targets.keeper.send(keeper_control.ForgetChild(message.token))

    def _kill_if_lost(self, targets: RouterTargets, message: ChildMessage, descriptors: list[int]) -> None:
        """A child whose descriptors found no room cannot be used; its exit is then handled as any other."""
        if isinstance(message, ChildDescriptors) and not descriptors:
            targets.keeper.send(keeper_control.SignalChild(message.token, signal.SIGKILL, whole_session=True))


def _instance(model_set: ModelSet, number: int, generation: int, *, adopted: bool) -> Instance | None:
    if adopted:
        # A process that the controller before started and could not record is unknown; its name is not used again.
        model_set.next_instance_id = max(model_set.next_instance_id, number + 1)
        instance = model_set.instance(number)
        if instance is not None and instance.worker is None:
            instance.generation = max(instance.generation, generation)
    return model_set.current_instance(number, generation)


def _gateway(pool: GatewayPool, number: int, generation: int, *, adopted: bool) -> GatewayProcess | None:
    """The gateway whose present process this is."""
    pool.reserve_generation(generation)
    gateway = pool.find(number)
    if adopted and gateway is not None and gateway.process is None:
        gateway.generation = generation
    return gateway if gateway is not None and gateway.generation == generation else None


def _send_to_instance(instance: Instance, message: ChildMessage, descriptors: list[int], *, adopted: bool) -> None:
    match message:
        case ChildDescriptors() if not descriptors:
            instance.apply(lifecycle_events.LoadReportedFailed("too_many_files", NO_DESCRIPTORS))
        case ChildExited():
            worker_exit.exited(instance, message)
        case NotForked(_, text):
            worker_messages.not_forked(instance, text)
        case ChildDescriptors():
            worker_messages.started(instance, message, descriptors)
            if not adopted:
                actions.send_boot(instance)
        case SpawnFailed(_, text):
            worker_exit.start_failed(instance, text)


def _send_to_gateway(gateway: GatewayProcess, message: ChildMessage, descriptors: list[int]) -> None:
    match message:
        case ChildDescriptors() if not descriptors:
            pass
        case ChildExited():
            gateway.on_exited(message)
        case ChildDescriptors(_, pid):
            gateway.on_started(pid, descriptors)
        case SpawnFailed(_, text):
            gateway.on_start_failed(text)
        case NotForked():
            pass  # no gateway is forked


def _send_to_zygotes(
    zygotes: ZygotePool, number: int, generation: int, message: ChildMessage, descriptors: list[int]
) -> None:
    match message:
        case ChildDescriptors(_, pid, note):
            zygotes.on_started(number, generation, pid, note, descriptors)
        case ChildExited():
            zygotes.on_exited(number, generation, message)
        case SpawnFailed(_, text):
            zygotes.on_start_failed(number, generation, text)
        case NotForked():
            pass  # nor is a zygote
