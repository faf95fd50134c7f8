"""What all gateways are sent about workers."""

from __future__ import annotations

import secrets

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import Condemned, LinkWorker, UnlinkWorker, Verdict
from mmsup.ipc.messages.worker_control import AttachGateway
from mmsup.ipc.paths import WorkerId
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.supervisor.gateways.barrier import GatewayBarriers
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.instances.context import WorkerEndpoint, WorkerFailure


class GatewayBroadcast:
    """Sends changes to all gateways. Holds which workers are linked, for those gateways that come later."""

    def __init__(self, pool: GatewayPool, barriers: GatewayBarriers) -> None:
        self._pool = pool
        self.barrier = barriers.add
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

    def link_all(self, gateway: GatewayProcess) -> None:
        for endpoint in self._endpoints.values():
            _link(gateway, endpoint)


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
