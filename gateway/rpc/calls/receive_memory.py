"""What the calls of a gateway share in receiving messages."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmsup.gateway.rpc.calls.inflate_queue import InflateQueue
from mmsup.gateway.rpc.calls.receive_budget import ReceiveBudget


@dataclass(frozen=True, slots=True)
class ReceiveMemory:
    budget: ReceiveBudget
    inflate_queue: InflateQueue = field(default_factory=InflateQueue)
