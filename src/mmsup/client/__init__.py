"""A client of mmsup and of other servers of the Open Inference Protocol V2: numpy arrays in and out, over HTTP.

    from mmsup.client import Client

    with Client("localhost:8000") as client:
        result = client.infer("mine", {"x": x})
        print(result["y"])

It needs numpy and the standard library. `AsyncClient` has the same methods for asyncio. docs/client.md
"""

from mmsup.client.async_client import AsyncClient
from mmsup.client.errors import ClientError, ConnectionFailed, InvalidReply, ServerRefused, TimedOut
from mmsup.client.replies import InferResult, ModelMetadata, ModelState, ServerMetadata, TensorMetadata
from mmsup.client.shared_memory import SharedMemory
from mmsup.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "InferResult",
    "InvalidReply",
    "ModelMetadata",
    "ModelState",
    "ServerMetadata",
    "ServerRefused",
    "SharedMemory",
    "TensorMetadata",
    "TimedOut",
]
