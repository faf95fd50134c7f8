"""Hello, the first message of a worker or gateway to the controller, and the version of the whole protocol.

Each side checks the version in the first message that it receives. Bytes: transport/codec.py and dataclass_codec.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WIRE_VERSION: Final = 9


@dataclass(frozen=True, slots=True)
class Hello:
    """The sender's identity: its first message, and its answer to the ConfigureGateway of a restarted controller."""

    role: str
    wire_version: int
    instance: int
    generation: int
