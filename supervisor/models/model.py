"""One model: what its repository says, what is wanted of it, and the editions of it that there are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from mmsup.ipc.messages.gateway_control import Route, VersionState
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.instances.lifecycle_events import State
from mmsup.supervisor.instances.revision import Edition, Release, Role
from mmsup.supervisor.models.readiness import Standing
from mmsup.supervisor.repository.scanner import ModelEntry

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

_NEAREST: Final = (
    State.READY,
    State.WARMING,
    State.LOADING,
    State.STARTING,
    State.ABSENT,
    State.BACKOFF,
    State.STOPPING,
    State.DRAINING,
    State.QUARANTINED,
    State.FAILED,
    State.STOPPED,
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
    editions: list[Edition] = field(default_factory=list["Edition"])
    is_coming: bool = False
    """A load waits for the end of its former processes; callers wait with it."""
    was_decided: bool = True
    """It has reached its first verdict, which a respawn does not take back. False only at the start of the server."""

    def edition(self, role: Role) -> Edition | None:
        """The one that is current, or coming."""
        return next((each for each in self.editions if each.role is role), None)

    @property
    def current(self) -> Edition | None:
        """What its callers get."""
        return self.edition(Role.CURRENT)

    def instances(self) -> Iterator[Instance]:
        """All of all editions."""
        for edition in self.editions:
            yield from edition.instances()

    def state(self) -> str:
        """One word for the model as a whole: its worst version, or what there is without one."""
        if not self.wanted:
            return self._state_of_leaving()
        states = [state_of(release) for release in self.current.releases] if self.current else []
        if self.entry is not None and (self.entry.broken or not states):
            states += [State.FAILED] if self.entry.faults or not states else []
        return max(states, key=_NEAREST.index, default=State.ABSENT)

    def _state_of_leaving(self) -> str:
        states = {each.state for each in self.instances()}
        if states:
            return State.QUARANTINED if states == {State.QUARANTINED} else State.DRAINING
        return State.STOPPED if self.unloaded else State.ABSENT

    def reason(self) -> str:
        """Why it is not all that it should be; empty while it is."""
        reasons = [self.entry.reason] if self.entry is not None and self.entry.faults else []
        if not self.wanted:
            return ""
        for release in self.current.releases if self.current else ():
            trouble = next((each.trouble for each in release.instances if each.trouble), None)
            if trouble is not None:
                reasons.append(f"version {release.spec.version}: {trouble.text}")
        return "; ".join(reasons)

    def standing(self) -> Standing:
        """How it stands, for the readiness of the server."""
        edition = self.current
        if edition is None:
            return Standing(self.name, serving=False, decided=True)
        serving = bool(edition.releases) and edition.is_serving()
        decided = edition.is_whole() or edition.load_failure() is not None
        gave_up = any(each.state is State.FAILED for each in edition.instances())
        return Standing(self.name, serving, decided or gave_up or self.was_decided)

    def route(self) -> Route:
        """What a gateway has to know of it."""
        if not self.wanted or self.current is None:
            known = self._coming() or self._broken() if self.wanted else ()
            return fitting(Route(self.name, self.wanted, known[-1].version if known else "", known))
        versions = [version_state(release) for release in self.current.releases]
        versions += self._broken()
        versions.sort(key=lambda each: int(each.version or 0))
        serving = [each.version for each in versions if each.state == State.READY]
        default = (serving or [each.version for each in versions] or [""])[-1]
        return fitting(Route(self.name, wanted=True, default=default, versions=tuple(versions)))

    def _coming(self) -> tuple[VersionState, ...]:
        """Versions that come as soon as the former ones are gone."""
        specs = self.entry.specs if self.entry is not None and self.is_coming else ()
        return tuple(VersionState(spec.version, State.STARTING, "", "", 0.0, spec, None) for spec in specs)

    def _broken(self) -> tuple[VersionState, ...]:
        """Versions that the repository's faults keep from being served."""
        if self.entry is None or not self.entry.faults:
            return ()
        served = {release.spec.version for release in self.current.releases} if self.current else set[str]()
        broken = dict(self.entry.broken)
        if not served and not broken:
            newest = self.entry.all_versions[-1:] or ("",)
            broken = dict.fromkeys(newest, self.entry.reason)
        return tuple(
            VersionState(version, State.FAILED, "model_failed", text, 0.0, None, None)
            for version, text in sorted(broken.items())
            if version not in served
        )


def state_of(release: Release) -> State:
    """One word for a version: the state of its instance that is nearest to serving."""
    return min((each.state for each in release.instances), key=_NEAREST.index, default=State.ABSENT)


def version_state(release: Release) -> VersionState:
    """One version, for a gateway."""
    state = state_of(release)
    spec = release.spec
    if state is State.READY:
        return VersionState(spec.version, state, "", "", 0.0, spec, release.metadata)
    trouble = next((each.trouble for each in release.instances if each.trouble), None)
    waits = [each.retry_at_s for each in release.instances if each.state in (State.BACKOFF, State.FAILED)]
    retry_after_s = max(min(waits, default=0.0) - time.monotonic(), 0.0)
    code = "" if trouble is None else "model_failed" if trouble.of_load else trouble.code
    reason = "" if trouble is None else trouble.text
    return VersionState(spec.version, state, code, reason, retry_after_s, spec, release.metadata)


def fitting(route: Route) -> Route:
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
