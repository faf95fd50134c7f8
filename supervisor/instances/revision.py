"""Revisions of a model: each is one content of it, made by a load from what the repository said at that time.

A revision owns everything that belongs to its content: specs, metadata reported by its workers, exits. Revisions never
share instances.

    active     its instances are linked to the gateways
    staged     made by a reload; becomes active when it is fully ready, and is dropped if any part of it fails
    retiring   routed to no more; removed with its last process
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.instance import Instance, VersionRevision


class RevisionRole(enum.StrEnum):
    """The values are stored in checkpoints."""

    ACTIVE = "current"
    STAGED = "coming"
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

    def load_failure(self) -> WorkerFailure | None:
        return next((each for version in self.versions if (each := version.load_failure())), None)
