"""One model: what its repository says, what is wanted of it, and the editions of it that there are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from mmsup.ipc.messages.gateway_control import Route, VersionState
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.instances.revision import Revision, RevisionRole, VersionRevision
from mmsup.supervisor.models.readiness import ModelReadiness
from mmsup.supervisor.repository.scanner import ModelEntry

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

_BEST_FIRST: Final = (
    InstanceState.READY,
    InstanceState.WARMING,
    InstanceState.LOADING,
    InstanceState.STARTING,
    InstanceState.ABSENT,
    InstanceState.BACKOFF,
    InstanceState.STOPPING,
    InstanceState.DRAINING,
    InstanceState.QUARANTINED,
    InstanceState.FAILED,
    InstanceState.STOPPED,
)
"""A version is as well off as the instance of it that is nearest to serving."""


@dataclass(slots=True, eq=False)
class Model:
    """One name."""

    name: str
    entry: ModelEntry | None
    """As last read; None once it is in no repository any more."""
    wanted: bool = False
    unloaded: bool = False
    """Not wanted because somebody said so, rather than never asked for."""
    revisions: list[Revision] = field(default_factory=list["Revision"])
    is_waiting_for_exit: bool = False
    """A load waits for the end of its former processes; callers wait with it."""
    had_outcome: bool = True
    """It has reached its first verdict, which a respawn does not take back. False only at the start of the server."""

    def revision(self, role: RevisionRole) -> Revision | None:
        """The one that is current, or coming."""
        return next((each for each in self.revisions if each.role is role), None)

    @property
    def active(self) -> Revision | None:
        """What its callers get."""
        return self.revision(RevisionRole.ACTIVE)

    def instances(self) -> Iterator[Instance]:
        """All of all editions."""
        for edition in self.revisions:
            yield from edition.instances()

    def state(self) -> str:
        """One word for the model as a whole: its worst version, or what there is without one."""
        if not self.wanted:
            return self._state_of_leaving()
        states = [state_of(release) for release in self.active.versions] if self.active else []
        if self.entry is not None and (self.entry.invalid_versions or not states):
            states += [InstanceState.FAILED] if self.entry.errors or not states else []
        return max(states, key=_BEST_FIRST.index, default=InstanceState.ABSENT)

    def _state_of_leaving(self) -> str:
        states = {each.state for each in self.instances()}
        if states:
            return InstanceState.QUARANTINED if states == {InstanceState.QUARANTINED} else InstanceState.DRAINING
        return InstanceState.STOPPED if self.unloaded else InstanceState.ABSENT

    def reason(self) -> str:
        """Why it is not all that it should be; empty while it is."""
        reasons = [self.entry.reason] if self.entry is not None and self.entry.errors else []
        if not self.wanted:
            return ""
        for release in self.active.versions if self.active else ():
            trouble = next((each.failure for each in release.instances if each.failure), None)
            if trouble is not None:
                reasons.append(f"version {release.spec.version}: {trouble.text}")
        return "; ".join(reasons)

    def readiness(self) -> ModelReadiness:
        """How it stands, for the readiness of the server."""
        edition = self.active
        if edition is None:
            return ModelReadiness(self.name, serving=False, has_outcome=True)
        serving = bool(edition.versions) and edition.is_serving()
        decided = edition.is_fully_ready() or edition.load_failure() is not None
        gave_up = any(each.state is InstanceState.FAILED for each in edition.instances())
        return ModelReadiness(self.name, serving, decided or gave_up or self.had_outcome)

    def route(self) -> Route:
        """What a gateway has to know of it."""
        if not self.wanted or self.active is None:
            known = self._coming() or self._broken() if self.wanted else ()
            return fit_message(Route(self.name, self.wanted, known[-1].version if known else "", known))
        versions = [version_state(release) for release in self.active.versions]
        versions += self._broken()
        versions.sort(key=lambda each: int(each.version or 0))
        serving = [each.version for each in versions if each.state == InstanceState.READY]
        default = (serving or [each.version for each in versions] or [""])[-1]
        return fit_message(Route(self.name, wanted=True, default=default, versions=tuple(versions)))

    def _coming(self) -> tuple[VersionState, ...]:
        """Versions that come as soon as the former ones are gone."""
        specs = self.entry.specs if self.entry is not None and self.is_waiting_for_exit else ()
        return tuple(VersionState(spec.version, InstanceState.STARTING, "", "", 0.0, spec, None) for spec in specs)

    def _broken(self) -> tuple[VersionState, ...]:
        """Versions that the repository's faults keep from being served."""
        if self.entry is None or not self.entry.errors:
            return ()
        served = {release.spec.version for release in self.active.versions} if self.active else set[str]()
        broken = dict(self.entry.invalid_versions)
        if not served and not broken:
            newest = self.entry.all_versions[-1:] or ("",)
            broken = dict.fromkeys(newest, self.entry.reason)
        return tuple(
            VersionState(version, InstanceState.FAILED, "model_failed", text, 0.0, None, None)
            for version, text in sorted(broken.items())
            if version not in served
        )


def state_of(release: VersionRevision) -> InstanceState:
    """One word for a version: the state of its instance that is nearest to serving."""
    return min((each.state for each in release.instances), key=_BEST_FIRST.index, default=InstanceState.ABSENT)


def version_state(release: VersionRevision) -> VersionState:
    """One version, for a gateway."""
    state = state_of(release)
    spec = release.spec
    if state is InstanceState.READY:
        return VersionState(spec.version, state, "", "", 0.0, spec, release.metadata)
    trouble = next((each.failure for each in release.instances if each.failure), None)
    waits = [
        each.retry_at_s for each in release.instances if each.state in (InstanceState.BACKOFF, InstanceState.FAILED)
    ]
    retry_after_s = max(min(waits, default=0.0) - time.monotonic(), 0.0)
    code = "" if trouble is None else "model_failed" if trouble.of_load else trouble.code
    reason = "" if trouble is None else trouble.text
    return VersionState(spec.version, state, code, reason, retry_after_s, spec, release.metadata)


def fit_message(route: Route) -> Route:
    """The route, in one message: what clients only look at goes first, then the reasons are cut."""
    if len(encode(route)) < MESSAGE_LIMIT:
        return route
    versions = tuple(
        replace(each, reason=each.reason[:200], spec=replace(each.spec, config={}) if each.spec else None)
        for each in route.versions
    )
    lean = replace(route, versions=versions)
    if len(encode(lean)) < MESSAGE_LIMIT:
        return lean
    newest = tuple(each for each in versions if each.version == route.default)
    return replace(lean, versions=newest)
