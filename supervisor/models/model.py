"""One model: what its repository holds, whether it is wanted, its revisions, and what gateways are sent about it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from mmsup.ipc.messages.gateway_control import Route, VersionState
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.capacity.moves import SleepTier
from mmsup.supervisor.instances.lifecycle_events import OFFLOADABLE, InstanceState
from mmsup.supervisor.instances.restart_policy import loads_failed_in_a_row
from mmsup.supervisor.models.readiness import ModelReadiness
from mmsup.supervisor.models.revision import Revision, RevisionRole
from mmsup.supervisor.models.sleep_state import ASLEEP, SleepPhase, SleepState
from mmsup.supervisor.repository.scanner import ModelEntry

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance, VersionRevision

_BEST_FIRST: Final = (
    InstanceState.READY,
    InstanceState.WARMING,
    InstanceState.RESTORING,
    InstanceState.LOADING,
    InstanceState.STARTING,
    InstanceState.OFFLOADED,
    InstanceState.OFFLOADING,
    InstanceState.ABSENT,
    InstanceState.BACKOFF,
    InstanceState.STOPPING,
    InstanceState.DRAINING,
    InstanceState.QUARANTINED,
    InstanceState.FAILED,
    InstanceState.STOPPED,
)
"""States of instances, nearest to serving first: the first of its instances gives the state of a version."""


_TRYING: Final = frozenset({InstanceState.ABSENT, InstanceState.STARTING, InstanceState.LOADING, InstanceState.WARMING})
SETTLING: Final = "its files may still be being written: it is loaded when two polls in a row have found the same"


@dataclass(slots=True, eq=False)
class Model:
    name: str
    entry: ModelEntry | None
    """As last read; None once it is in no repository."""
    wanted: bool = False
    unloaded: bool = False
    """Not wanted because of a command, rather than never loaded."""
    revisions: list[Revision] = field(default_factory=list["Revision"])
    is_waiting_for_exit: bool = False
    """A load waits until the processes of the former revision have exited; requests wait with it."""
    is_settling: bool = False
    """Its first files may still be being written: it is loaded when two polls in a row have found the same."""
    had_outcome: bool = True
    """Requests that name no version have been served once, or its load has failed; a restart does not take that back.
    False only at the start of the server."""
    all_had_outcome: bool = True
    """The same of each of its versions."""
    sleep: SleepState = field(default_factory=SleepState)
    readiness: ModelReadiness | None = None
    """As of the last `update_readiness`; None while it is not wanted."""

    def revision(self, role: RevisionRole) -> Revision | None:
        return next((each for each in self.revisions if each.role is role), None)

    @property
    def active(self) -> Revision | None:
        return self.revision(RevisionRole.ACTIVE)

    def groups(self) -> set[str]:
        """The co-location groups of its versions; empty if each of them has a process of its own."""
        specs = self.entry.specs if self.entry is not None else ()
        return {spec.group for spec in specs if spec.group}

    def instances(self) -> Iterator[Instance]:
        for revision in self.revisions:
            yield from revision.instances()

    def state(self) -> str:
        if not self.wanted:
            return self._state_of_unwanted()
        if self.sleep.is_asleep and self.entry is not None and self.entry.specs:
            return ASLEEP
        states = [state_of(version) for version in self.active.versions] if self.active else []
        if self.entry is not None and not self.is_settling and (self.entry.invalid_versions or not states):
            states += [InstanceState.FAILED] if self.entry.errors or not states else []
        return max(states, key=_BEST_FIRST.index, default=InstanceState.ABSENT)

    def _state_of_unwanted(self) -> str:
        states = {each.state for each in self.instances()}
        if states:
            return InstanceState.QUARANTINED if states == {InstanceState.QUARANTINED} else InstanceState.DRAINING
        return InstanceState.STOPPED if self.unloaded else InstanceState.ABSENT

    def reason(self) -> str:
        """Why not all of its versions are ready; empty if they are."""
        if self.state() == ASLEEP:
            place = "in host memory: " if asleep_in(self) is SleepTier.HOST_MEMORY else ""
            return self.sleep.failure or f"{place}{self.sleep.why}"
        reasons = [self.entry.reason] if self.entry is not None and self.entry.errors else []
        if not self.wanted:
            return ""
        if self.is_settling:
            reasons.append(SETTLING)
        for version in self.active.versions if self.active else ():
            if text := failure_reason(version, time.monotonic()):
                reasons.append(f"version {version.spec.version}: {text}")
        return "; ".join(reasons) + (self.entry.paste if self.entry is not None else "")

    def update_readiness(self) -> bool:
        """Compute `readiness` anew; whether it has changed."""
        before, revision = self.readiness, self.active
        versions = sorted(revision.versions, key=lambda each: -int(each.spec.version)) if revision is not None else []
        default = next((each for each in versions if not _has_failed(each)), None)
        self._settle_wake()
        self.had_outcome = self.had_outcome or default is None or default.is_serving()
        self.all_had_outcome = self.all_had_outcome or all(_has_failed(each) or each.is_serving() for each in versions)
        self.readiness = None
        if self.wanted and self.sleep.phase is not SleepPhase.AWAKE:
            self.had_outcome = self.all_had_outcome = True  # ready to be asked
            self.readiness = ModelReadiness(self.name, serving=True, has_outcome=True)
        elif self.wanted:
            self.readiness = ModelReadiness(
                self.name,
                serving=any(each.is_serving() for each in versions) if default is None else default.is_serving(),
                has_outcome=self.had_outcome,
                all_serving=bool(versions) and all(each.is_serving() for each in versions),
                all_have_outcome=self.all_had_outcome,
            )
        return self.readiness != before

    def _settle_wake(self) -> None:
        """End the wake once each version that was loaded serves or has failed."""
        versions = self.active.versions if self.active is not None else ()
        if self.sleep.phase is SleepPhase.WAKING and versions:
            is_over = all(_has_failed(each) or each.is_serving() for each in versions)
            self.sleep.phase = SleepPhase.AWAKE if is_over else SleepPhase.WAKING

    def route(self) -> Route:
        """May be more than fits into a message."""
        versions = self.routed_versions()
        return Route(self.name, self.wanted, default_version(versions), versions)

    def routed_versions(self) -> tuple[VersionState, ...]:
        """In ascending order; none if it is not wanted."""
        if not self.wanted:
            return ()
        if self.active is None:
            return self._awaited_versions() or self._invalid_versions()
        versions = [self._with_sleep(version_state(version)) for version in self.active.versions]
        versions += self._invalid_versions()
        return tuple(sorted(versions, key=lambda each: int(each.version or 0)))

    def _with_sleep(self, state: VersionState) -> VersionState:
        """The state of a version with what sleep adds to it."""
        if self.sleep.phase is SleepPhase.AWAKE or state.spec is None:
            return state
        stamp = self.entry.file_digest if self.entry is not None else ""
        metadata = state.metadata or self.sleep.known_metadata(stamp, state.version)
        return replace(state, metadata=metadata, wake_wait_s=self.sleep.wake_wait_s(state.spec))

    def _awaited_versions(self) -> tuple[VersionState, ...]:
        """Versions that are asleep, or started as soon as the processes of the former revision have exited, or the
        files are still."""
        if self.sleep.is_asleep and self.entry is not None:
            asleep = (*self.sleep.versions(self.entry.specs, self.entry.file_digest), *self._invalid_versions())
            return tuple(sorted(asleep, key=lambda each: int(each.version or 0))) if self.entry.specs else ()
        specs = self.entry.specs if self.entry is not None and (self.is_waiting_for_exit or self.is_settling) else ()
        state, reason = (InstanceState.ABSENT, SETTLING) if self.is_settling else (InstanceState.STARTING, "")
        found = (VersionState(spec.version, state, "", reason, 0.0, spec, None) for spec in specs)
        return tuple(map(self._with_sleep, found))

    def _invalid_versions(self) -> tuple[VersionState, ...]:
        """Versions that cannot be loaded because of errors in the repository."""
        if self.entry is None or not self.entry.errors:
            return ()
        served = {version.spec.version for version in self.active.versions} if self.active else set[str]()
        if self.sleep.is_asleep:
            served = {each.version for each in self.entry.specs}
        broken = tuple(sorted(self.entry.invalid_versions))
        if not served and not broken:
            broken = self.entry.all_versions[-1:] or ("",)
        reason = self.entry.public_reason
        return tuple(
            VersionState(version, InstanceState.FAILED, "model_failed", reason, 0.0, None, None)
            for version in broken
            if version not in served
        )


def asleep_in(model: Model) -> SleepTier | None:
    """Where a model is that is asleep; None if it is awake."""
    if not model.sleep.is_asleep:
        return None
    return SleepTier.UNLOADED if model.revision(RevisionRole.OFFLOADED) is None else SleepTier.HOST_MEMORY


def default_version(versions: Sequence[VersionState]) -> str:
    """The version that a request gets which names none, of those of a model in ascending order: the highest that serves
    or is about to. So nobody is answered by an older one while the newest is loaded for the first time or restarted,
    and everybody is by the next lower one that serves if the newest cannot be loaded or has been given up."""
    good = [each.version for each in versions if each.state == InstanceState.READY or _is_coming(each)]
    return (good or [each.version for each in versions] or [""])[-1]


def _has_failed(version: VersionRevision) -> bool:
    return not version.is_serving() and not _is_coming(version_state(version))


def _is_coming(version: VersionState) -> bool:
    """It does not serve, and is about to: a first load, a restart."""
    is_lost = version.state in (InstanceState.QUARANTINED, InstanceState.FAILED, InstanceState.STOPPED)
    return version.code in ("", "model_restarting") and not is_lost


def state_of(version: VersionRevision) -> InstanceState:
    """The state of the instance that is nearest to serving. An ensemble has none: it is ready as far as it goes."""
    if version.spec.steps:
        return InstanceState.READY
    return min((each.state for each in version.instances), key=_BEST_FIRST.index, default=InstanceState.ABSENT)


def failure_reason(version: VersionRevision, now_s: float) -> str:
    """For the operator: why an instance of a version does not serve, and whether that is tried again; empty if no
    instance has failed. Its state alone does not tell a first load from one that follows a failure."""
    instance = next((each for each in version.instances if each.failure), None)
    if instance is None or instance.failure is None:
        return ""
    text = instance.failure.operator_text
    if instance.state is InstanceState.BACKOFF:
        next_try = f"next try in {max(instance.retry.at_s - now_s, 0):.1f} s"
    elif instance.state in _TRYING:
        next_try = "trying again"
    else:
        return text
    if not instance.failure.of_load:
        return f"{next_try}: {text}"
    loads = loads_failed_in_a_row(version.exits)
    return f"load failed{f' ({loads} in a row)' if loads > 1 else ''}, {next_try}: {text}"


def version_state(version: VersionRevision) -> VersionState:
    state, spec = state_of(version), version.spec
    if state in OFFLOADABLE or state is InstanceState.RESTORING:
        state = InstanceState.LOADING  # the same to whoever waits for it
    if state is InstanceState.READY:
        return VersionState(spec.version, state, "", "", 0.0, spec, version.metadata)
    failure = next((each.failure for each in version.instances if each.failure), None)
    retrying = (InstanceState.BACKOFF, InstanceState.FAILED)
    retries_s = [each.retry.at_s for each in version.instances if each.state in retrying]
    retry_after_s = max(min(retries_s, default=0.0) - time.monotonic(), 0.0)
    code = "" if failure is None else failure.request_code
    reason = "" if failure is None else failure.text
    retryable = failure is not None and failure.of_load and failure.retryable
    return VersionState(spec.version, state, code, reason, retry_after_s, spec, version.metadata, retryable=retryable)


def fit_message(route: Route) -> Route:
    """The route, cut until it fits into one message: configurations and long reasons first, then all versions but the
    default one."""
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
