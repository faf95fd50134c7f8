"""Revisions of a model: each is one content of it, made by a load from what the repository said at that time.

A revision owns everything that belongs to its content: specs, metadata reported by its workers, exits. Revisions never
share instances.

    active     its instances are linked to the gateways
    staged     made by a reload; becomes active when it is fully ready, and is dropped if any part of it fails
    offloaded  asleep: its processes are kept with the model out of the memory that it serves from; active again when
               it is asked for, or retired
    retiring   routed to no more; removed with its last process
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.instance import Instance, VersionRevision
from mmsup.supervisor.instances.lifecycle_events import OFFLOADABLE


class RevisionRole(enum.StrEnum):
    """The values are stored in checkpoints."""

    ACTIVE = "current"
    STAGED = "coming"
    OFFLOADED = "offloaded"
    RETIRING = "leaving"


@dataclass(slots=True, eq=False)
class Revision:
    role: RevisionRole
    config: str
    """ModelConfig as JSON that came with the load request; empty: the repository's."""
    versions: list[VersionRevision]
    stamp: str = ""
    """Identifies the files that it was made from."""

    @property
    def content_id(self) -> str:
        return f"{self.stamp}{self.config}"

    def instances(self) -> Iterator[Instance]:
        for version in self.versions:
            yield from version.instances

    def is_serving(self) -> bool:
        return all(version.is_serving() for version in self.versions)

    def is_any_serving(self) -> bool:
        return any(version.is_serving() for version in self.versions)

    def is_fully_ready(self) -> bool:
        return all(version.is_fully_ready() for version in self.versions)

    def is_offloadable(self) -> bool:
        """Whether each of its workers can move its model out of memory and back, alone in its process."""
        return bool(self.versions) and all(each.can_offload and not each.spec.group for each in self.versions)

    def can_be_restored(self) -> bool:
        """Whether all its workers are there, offloaded or about to be."""
        return all(
            len(each.instances) == each.spec.instances
            and all(instance.state in OFFLOADABLE for instance in each.instances)
            for each in self.versions
        )

    def load_failure(self) -> WorkerFailure | None:
        return next((each for version in self.versions if (each := version.load_failure())), None)
