"""The methods about shared memory of clients: register, unregister, status, for system memory and that of GPUs."""

from __future__ import annotations

from mmsup.gateway.client_memory.region_rules import Peer
from mmsup.gateway.client_memory.region_table import CUDA, SYSTEM, RegionTable
from mmsup.gateway.rpc.calls.messages import Message
from mmsup.gateway.rpc.calls.peer import RpcPeer


class MemoryService:
    def __init__(self, regions: RegionTable) -> None:
        self._regions = regions

    async def handle(self, method: str, request: Message, reply: Message, peer: RpcPeer) -> None:
        """Serve one method and fill its reply; MmsupError if it is refused."""
        kind = SYSTEM if method.startswith("System") else CUDA
        client = Peer(peer.is_local, peer.uid)
        if method.endswith("Unregister"):
            await self._regions.unregister(kind, request.name, client)
        elif method.endswith("Status"):
            self._show(kind, request.name, client, reply)
        elif kind == SYSTEM:
            await self._regions.register_system(request.name, request.key, request.offset, request.byte_size, client)
        else:
            handle, device = request.raw_handle, request.device_id
            await self._regions.register_cuda(request.name, handle, device, request.byte_size, client)

    def _show(self, kind: str, name: str, client: Peer, reply: Message) -> None:
        for region in self._regions.status(kind, name, client):
            shown = reply.regions[region.name]
            shown.name, shown.byte_size = region.name, region.byte_size
            if kind == SYSTEM:
                shown.key, shown.offset = region.key, region.offset
            else:
                shown.device_id = region.device
