"""What gateways report: each message goes to the part of the controller that it is about; a new one gets the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.log_settings import LogSettings
from mmsup.ipc.messages import gateway_control
from mmsup.ipc.messages.gateway_control import CommandReply, CommandRequest, PoisonSuspected, RpcFrontFailed
from mmsup.supervisor.gateways.barrier import GatewayBarriers
from mmsup.supervisor.gateways.broadcast import GatewayBroadcast
from mmsup.supervisor.gateways.client_regions import ClientRegions
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.instances.lifecycle_events import ProtocolViolated
from mmsup.supervisor.models.model import fit_message
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.readiness import ServerReadiness
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
        regions: ClientRegions,
        crash_collector: CrashCollector,
        readiness: Callable[[], ServerReadiness],
    ) -> None:
        self.on_command: OnCommand = lambda _request, _reply: None
        self.log_settings: Callable[[], LogSettings] = LogSettings
        self.on_rpc_front_failed: Callable[[int, str], None] = lambda _number, _text: None
        """Gets the number of a gateway whose own gRPC front does not work, and why."""
        self._pool = pool
        self._barriers = barriers
        self._broadcast = broadcast
        self._model_set = model_set
        self._poison_requests = poison_requests
        self.regions = regions
        self._crash_collector = crash_collector
        self._readiness = readiness

    def on_configured(self, gateway: GatewayProcess) -> None:
        """Send it the whole state."""
        gateway.send(self.log_settings())
        for model in self._model_set.models.values():
            gateway.send(fit_message(model.route()))
        for message in self._poison_requests.messages():
            gateway.send(message)
        self.regions.send_all(gateway)
        self._broadcast.link_all(gateway)
        readiness = self._readiness()
        gateway.send(gateway_control.Synced(readiness.ready, readiness.reason))
        self._barriers.start_sync(gateway)

    def on_message(self, gateway: GatewayProcess, message: Any) -> None:  # one of FROM_GATEWAY but Hello
        match message:
            case gateway_control.Pong(number):
                self._barriers.on_pong(gateway, number)
            case gateway_control.LinkClosed():
                self._crash_collector.on_worker_ended(gateway.number, message)
            case PoisonSuspected():
                self._on_suspects(message)
            case gateway_control.SuspectCleared():
                self._poison_requests.clear_suspect(message)
            case gateway_control.RequestOverdue():
                instance = self._model_set.current_instance(message.instance, message.generation)
                if (
                    instance is not None
                    and instance.worker is not None
                    and instance.worker.watches.liveness is not None
                ):
                    instance.worker.watches.liveness.check(message.age_s)
            case gateway_control.BadReply():
                instance = self._model_set.current_instance(message.instance, message.generation)
                if instance is not None:
                    instance.apply(ProtocolViolated(f"its answer was not valid: {message.text}"))
            case RpcFrontFailed(text):
                self.on_rpc_front_failed(gateway.number, text)
            case CommandRequest():
                failpoint("brain.asked")
                generation = gateway.generation
                self.on_command(message, lambda reply: _reply(gateway, generation, reply))
            case gateway_control.UnregisterRegions():
                self.regions.on_unregister(gateway, message)
            case _:
                self._barriers.on_drained(gateway)

    def on_region(
        self, gateway: GatewayProcess, message: gateway_control.RegisterRegion, descriptors: list[int]
    ) -> None:
        self.regions.on_register(gateway, message, descriptors)

    def on_exited(self, gateway: GatewayProcess) -> None:
        self._barriers.on_exited(gateway)
        self._pool.remove(gateway)
        self._pool.on_change()

    def _on_suspects(self, message: PoisonSuspected) -> None:
        model, instance = self._model_set.model(message.name), self._model_set.instance(message.instance)
        revision = self._model_set.revision_of(instance) if instance is not None else None
        if revision is not None and model is not None and revision is model.active:  # else the content it ran is gone
            self._poison_requests.add_suspects(message, revision.content_id)


def _reply(gateway: GatewayProcess, generation: int, reply: CommandReply) -> None:
    if gateway.generation == generation:
        gateway.send(reply)
