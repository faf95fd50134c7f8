"""What one brain leaves to the next: everything that cannot be read again from children, pages or the repository.

Kept by the keeper as one text, given to it at every change. Compressed, because specs repeat themselves and one control
message holds it all. Who is alive comes from the keeper's list, not from here. Times are CLOCK_MONOTONIC, which is the
same for all brains.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.ipc.transport.dataclass_codec import WireError, record_decoder, to_plain

TEXT_LIMIT: Final = MESSAGE_LIMIT - 1024
"""Beyond it the next brain would know nothing; so many models want several servers."""
SERVING: Final = "serves"
LEAVING: Final = "leaves"
STANDBY: Final = "spare"


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """One `restart.End`."""

    at_s: float
    served_s: float
    probe: bool


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """One `site.Judgement`."""

    code: str
    text: str
    of_load: bool


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One instance: its situation, and the facts beside it."""

    instance: int
    generation: int
    wanted: bool
    state: str
    probe: bool
    retry_at_s: float
    spawned_s: float
    ready_s: float
    """When this life became ready; 0 if it did not."""
    trouble: FailureRecord | None
    """Why it is not up, as its model's callers get it."""
    condemned: FailureRecord | None
    failed: FailureRecord | None
    group: str
    """Name of the control group of its life."""
    visible_devices: str


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of an edition."""

    spec: ModelSpec
    metadata: Metadata | None
    ends: tuple[ExitRecord, ...]
    instances: tuple[InstanceRecord, ...]


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """One content of a model. `role`: `current`, `coming` or `leaving`."""

    role: str
    config: str
    stamp: str
    versions: tuple[VersionRecord, ...]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model."""

    name: str
    wanted: bool
    revisions: tuple[RevisionRecord, ...]


@dataclass(frozen=True, slots=True)
class PoisonCaseRecord:
    """One `suspects.Case` that is blocked; its fingerprint in hexadecimal."""

    fingerprint: str
    version: str
    deaths: int
    until_s: float


@dataclass(frozen=True, slots=True)
class PoisonListRecord:
    """The blocked requests of one model, and of which of its contents they are."""

    name: str
    revision_id: str
    cases: tuple[PoisonCaseRecord, ...]


@dataclass(frozen=True, slots=True)
class GpuFaultRecord:
    """One `aside.Fault`."""

    at_s: float
    model: str


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """One GPU, and what is held against it."""

    device: str
    """Its UUID, or what else stood in CUDA_VISIBLE_DEVICES of a worker that met a fault there."""
    index: int
    """NVML's number; -1: it is none of NVML's list."""
    name: str
    reason: str
    """Why it is set aside; empty if it is not."""
    faults: tuple[GpuFaultRecord, ...]


@dataclass(frozen=True, slots=True)
class GatewayRecord:
    """One gateway. `role`: `serves`; `leaves`: it has a successor, or was to be one and is not up; `spare`."""

    number: int
    counter_table: int
    """The tally that it counts in."""
    generation: int
    spawned_s: float
    role: str


@dataclass(frozen=True, slots=True)
class UpgradeRecord:
    """One upgrade: how far it is, or what it came to."""

    ticket: str
    """Chosen by whoever asked, so that the question can be asked again."""
    force: bool
    started_s: float
    """Whatever was started before is of the old code."""
    stage: str
    """`code`, `processes`, `done`."""
    keeper_generation: int
    replaces_keeper: bool
    """The keeper was to become another program."""
    replaced: int
    """Processes that were followed by another one."""
    kept: dict[str, str]
    """What stays as it was, and why: `worker 7 of digits/1`."""
    failure: str
    """Why it ended before its end; empty if it did not."""
    seconds: float
    """How long it took; 0 until it is done."""
    controllers: int
    """How many have worked at it: one that falls each time is not taken up for ever."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All of it."""

    began_s: float
    """When the server started."""
    announced: bool
    """READY was said."""
    next_instance: int
    models: tuple[ModelRecord, ...]
    gateways: tuple[GatewayRecord, ...]
    quarantine: tuple[PoisonListRecord, ...]
    devices: tuple[GpuRecord, ...]
    upgrade: UpgradeRecord | None


def to_text(memory: Checkpoint) -> str:
    """As a text for the keeper."""
    plain = json.dumps(to_plain(memory)[1:], separators=(",", ":")).encode()
    return base64.b85encode(zlib.compress(plain, 1)).decode()


def from_text(text: str) -> Checkpoint | None:
    """What a brain before us left; None if there was none, or it was of another version of us."""
    if not text:
        return None
    try:
        made = record_decoder(Checkpoint)(json.loads(zlib.decompress(base64.b85decode(text))))
    except (WireError, ValueError, zlib.error, binascii.Error):
        return None
    assert isinstance(made, Checkpoint)
    return made
