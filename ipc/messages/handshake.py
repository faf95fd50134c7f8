"""The first message of a worker or gateway to the controller, and the version of all of these messages.

Everything in this folder is one protocol with one version; each side checks it in the first message.
Does not cover: bytes (transport/codec.py, transport/dataclass_codec.py), sockets (transport/).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WIRE_VERSION: Final = 3


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a worker or gateway, and its answer to a new brain's Boot-less Ping: who it is."""

    role: str
    wire_version: int
    instance: int
    generation: int
