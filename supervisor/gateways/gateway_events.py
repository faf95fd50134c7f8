"""What gateways report: each message goes to the part of the controller that it is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import (
    BadReply,
    CommandReply,
    CommandRequest,
    LinkClosed,
    PoisonSuspected,
    Pong,
    RequestOverdue,
    SuspectCleared,
)
from mmsup.supervisor.gateways.barrier import GatewayBarriers
from mmsup.supervisor.gateways.broadcast import GatewayBroadcast
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import ProtocolViolated
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.postmortem.collector import CrashCollector

OnCommand = Callable[[CommandRequest, Callable[[CommandReply], None]], object]
"""Gets a command of a gateway's client, and where its reply goes."""


class GatewayEvents:
    def __init__(
        self,
        pool: GatewayPool,
        barriers: GatewayBarriers,
        broadcast: GatewayBroadcast,
        model_set: ModelSet,
        poison_requests: PoisonRegistry,
        crash_collector: CrashCollector,
    ) -> None:
        self.on_command: OnCommand = lambda _request, _reply: None
        self._pool = pool
        self._barriers = barriers
        self._broadcast = broadcast
        self._model_set = model_set
        self._poison_requests = poison_requests
        self._crash_collector = crash_collector

    def on_configured(self, gateway: GatewayProcess) -> None:
        self._broadcast.send_state(gateway)

    def on_message(self, gateway: GatewayProcess, message: Any) -> None:  # one of FROM_GATEWAY but Hello
        match message:
            case Pong(number):
                self._barriers.on_pong(gateway, number)
            case LinkClosed():
                self._crash_collector.on_worker_ended(gateway.number, message)
            case PoisonSuspected():
                self._on_suspects(message)
            case SuspectCleared():
                self._poison_requests.clear_suspect(message)
            case RequestOverdue():
                instance = self._find(message.instance, message.generation)
                if instance is not None and instance.worker is not None and instance.worker.liveness_probe is not None:
                    instance.worker.liveness_probe.check(message.age_s)
            case BadReply():
                instance = self._find(message.instance, message.generation)
                if instance is not None:
                    instance.apply(ProtocolViolated(f"its answer was not valid: {message.text}"))
            case CommandRequest():
                failpoint("brain.asked")
                generation = gateway.generation
                self.on_command(message, lambda reply: _reply(gateway, generation, reply))
            case _:
                self._barriers.on_drained(gateway)

    def on_exited(self, gateway: GatewayProcess) -> None:
        self._barriers.on_exited(gateway)
        self._pool.remove(gateway)
        self._pool.on_change()

    def respawn(self, gateway: GatewayProcess) -> None:
        self._pool.respawn(gateway)

    def _on_suspects(self, message: PoisonSuspected) -> None:
        model, instance = self._model_set.model(message.name), self._model_set.instance(message.instance)
        revision = self._model_set.revision_of(instance) if instance is not None else None
        if revision is not None and model is not None and revision is model.active:  # else the content it ran is gone
            self._poison_requests.add_suspects(message, revision.content_id)

    def _find(self, number: int, generation: int) -> Instance | None:
        """The instance, if it has a process of this generation."""
        instance = self._model_set.instance(number)
        is_current = instance is not None and instance.generation == generation and instance.worker is not None
        return instance if is_current else None


def _reply(gateway: GatewayProcess, generation: int, reply: CommandReply) -> None:
    if gateway.generation == generation:
        gateway.send(reply)
