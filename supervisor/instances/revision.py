"""What of a model is in force: an edition is one content of it, a release one version in an edition.

A load makes a new edition from what the repository says at that time. Its releases carry everything that belongs to
that content and no other: specs, metadata told by its workers, ends of its lives. Editions never share instances.

    current   its instances are linked to the gateways
    coming    made by a reload; takes over when all of it is ready, and is dropped if any of it fails
    leaving   routed to no more; forgotten with its last process
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.processes.backoff import Exit

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance


@dataclass(slots=True, eq=False)
class VersionRevision:
    """One version of one content."""

    spec: ModelSpec
    metadata: Metadata | None = None
    """None until a worker of it was ready once."""
    exits: list[Exit] = field(default_factory=list["Exit"])
    instances: list[Instance] = field(default_factory=list["Instance"])

    def is_serving(self) -> bool:
        """Whether any of its instances is ready."""
        return any(each.state is InstanceState.READY for each in self.instances)

    def is_fully_ready(self) -> bool:
        """Whether all of them are."""
        return all(each.state is InstanceState.READY for each in self.instances)

    def load_failure(self) -> WorkerFailure | None:
        """Why a load of it failed, if that is how one of its instances stands."""
        return next((each.load_failure for each in self.instances if each.load_failure), None)


class RevisionRole(enum.StrEnum):
    """What an edition is to its model."""

    ACTIVE = "current"
    STAGED = "coming"
    RETIRING = "leaving"


@dataclass(slots=True, eq=False)
class Revision:
    """One content of a model."""

    role: RevisionRole
    config: str
    """ModelConfig as JSON that came with the load; empty: what the repository said."""
    versions: list[VersionRevision]
    stamp: str = ""
    """Of the files that it was made from."""

    @property
    def content_id(self) -> str:
        """The same as long as the content is."""
        return f"{self.stamp}{self.config}"

    def instances(self) -> Iterator[Instance]:
        """All of all its releases."""
        for release in self.versions:
            yield from release.instances

    def is_serving(self) -> bool:
        """Whether each version has an instance that is ready."""
        return all(release.is_serving() for release in self.versions)

    def is_fully_ready(self) -> bool:
        """Whether every instance is ready."""
        return all(release.is_fully_ready() for release in self.versions)

    def load_failure(self) -> WorkerFailure | None:
        """Why its load failed, if it did."""
        return next((each for release in self.versions if (each := release.load_failure())), None)
