"""What all gateways are sent about workers and models, and the whole state that a new gateway is sent."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import Condemned, LinkWorker, Route, Synced, UnlinkWorker, Unroute, Verdict
from mmsup.ipc.messages.worker_control import AttachGateway
from mmsup.ipc.paths import WorkerId
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.supervisor.gateways.barrier import GatewayBarriers
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.instances.context import WorkerEndpoint, WorkerFailure
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.readiness import ServerReadiness


class GatewayBroadcast:
    """Sends changes to all gateways. Holds which workers are linked, for those gateways that come later."""

    def __init__(
        self,
        pool: GatewayPool,
        barriers: GatewayBarriers,
        model_set: ModelSet,
        poison_requests: PoisonRegistry,
        readiness: Callable[[], ServerReadiness],
    ) -> None:
        self._pool = pool
        self._barriers = barriers
        self._model_set = model_set
        self._poison_requests = poison_requests
        self._readiness = readiness
        self._endpoints: dict[WorkerId, WorkerEndpoint] = {}

    def link(self, endpoint: WorkerEndpoint) -> None:
        self._endpoints[endpoint.worker_id] = endpoint
        for gateway in self._pool.processes():
            _link(gateway, endpoint)
        failpoint("brain.linked")

    def unlink(self, worker: WorkerId) -> None:
        if self._endpoints.pop(worker, None) is not None:
            self._pool.broadcast(UnlinkWorker(*worker))
            failpoint("brain.withdrawn")

    def condemn(self, worker: WorkerId, failure: WorkerFailure) -> None:
        self._endpoints.pop(worker, None)
        self._pool.broadcast(Condemned(*worker, failure.code, failure.text))
        failpoint("brain.condemned")

    def verdict(self, worker: WorkerId, failure: WorkerFailure) -> None:
        self._endpoints.pop(worker, None)
        self._pool.broadcast(Verdict(*worker, failure.code, failure.text, failure.retryable))

    def barrier(self, limit_s: float, on_done: Callable[[], None]) -> None:
        """Call `on_done` once, when all gateways have applied what they were sent so far, or after the limit."""
        self._barriers.add(limit_s, on_done)

    def route(self, route: Route) -> None:
        self._pool.broadcast(route)
        failpoint("brain.routed")

    def unroute(self, name: str) -> None:
        self._pool.broadcast(Unroute(name))

    def send_state(self, gateway: GatewayProcess) -> None:
        for model in self._model_set.models.values():
            gateway.send(model.route())
        for message in self._poison_requests.messages():
            gateway.send(message)
        for endpoint in self._endpoints.values():
            _link(gateway, endpoint)
        readiness = self._readiness()
        gateway.send(Synced(readiness.ready, readiness.reason))
        self._barriers.start_sync(gateway)


def _link(gateway: GatewayProcess, endpoint: WorkerEndpoint) -> None:
    """Connect the two by a fresh pair of channels: its one end to the worker first, then the other to the gateway."""
    if gateway.channel is None:
        return
    failpoint("brain.pair")
    ours, theirs = ControlChannel.pair()
    try:
        identity = f"g{gateway.number}.{gateway.generation}.{secrets.token_hex(6)}".encode()
        process = endpoint.process
        process.channel.send(encode(AttachGateway(gateway.number, identity)), (theirs.fileno(),))
        failpoint("brain.attached")
        link = LinkWorker(*endpoint.worker_id, endpoint.address, identity, endpoint.spec, endpoint.metadata)
        gateway.send(link, (process.pidfd, process.page_fd, ours.fileno()))
    finally:
        ours.close()
        theirs.close()
