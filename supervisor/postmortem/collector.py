"""From a death to its bundle on disk, beside everything else: nobody waits for it, and it waits for nobody long.

The gateways are given a moment to tell what was in flight. Then the case goes to a thread, the brain's only one, which
reads artefacts and writes bundles: a disk that is slow, full or gone costs bundles and nothing else, and each loss is
an event. Who calls: hands.py at the start of a life, instance.py at its end, verbs.py for `why`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc.errors import ServerError
from mmsup.ipc.messages.gateway_control import LinkClosed
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.instances.context import WorkerId
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.postmortem import digests
from mmsup.supervisor.postmortem.archive import CrashArchive
from mmsup.supervisor.postmortem.crash_report import CrashRecord, crash_report
from mmsup.supervisor.postmortem.in_flight import InFlightAtExit, InFlightSummary

Json = dict[str, Any]  # one JSON object

GATEWAY_WAIT_S: Final = 0.25
"""Gateways hear of a death when we do; one that has not told by now hangs, or is dead itself."""
MAX_JOBS: Final = 64
"""Jobs that may wait for the disk; a bundle beyond them is lost."""
READ_LIMIT_S: Final = 5.0
_UNKNOWN: Final = {"sha256": "", "of": "nothing: the disk was too slow"}


@dataclass(slots=True)
class _PendingReport:
    """A case that waits for the gateways."""

    record: CrashRecord
    artifact: Future[Json] | None
    timer: asyncio.TimerHandle | None = field(default=None)


class CrashCollector:
    """One per brain, from `start` to `close`."""

    def __init__(self, archive: CrashArchive, journal: EventLog, places: Callable[[], Set[int]]) -> None:
        """`places`: the gateways that live and can be heard."""
        self.lost_reports = 0
        """Bundles that could not be written."""
        self._archive = archive
        self._journal = journal
        self._live_gateways = places
        self._in_flight = InFlightAtExit()
        self._digests = digests.ArtifactDigests()
        self._pending: dict[WorkerId, _PendingReport] = {}
        self._jobs = 0
        self._thread = ThreadPoolExecutor(1, "forensics")
        self._is_closed = False
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Begin with what there is."""
        self._submit(self._archive.open)

    def artifact_digest(self, spec: ModelSpec) -> Future[Json] | None:
        """A life begins, or is taken over: the digest of what it loads, once it is read. None: the disk is too slow."""
        return self._submit(self._digests.digest, spec.directory)

    def on_worker_ended(self, place: int, ended: LinkClosed) -> None:
        """A gateway says what was in flight."""
        self._in_flight.add(place, ended)
        key = ended.instance, ended.generation
        if key in self._pending and self.in_flight(key).is_complete:
            self._submit_report(key)

    def in_flight(self, key: WorkerId) -> InFlightSummary:
        """What was in flight at the end of a life, as far as it is known now."""
        return self._in_flight.summary(key, self._live_gateways())

    def collect(self, case: CrashRecord, artefact: Future[Json] | None) -> None:
        """A death, with all that is known but what the gateways have yet to tell."""
        key = case.instance, case.generation
        made = self._pending[key] = _PendingReport(case, artefact)
        wait_s = GATEWAY_WAIT_S if case.is_linked and not self.in_flight(key).is_complete else 0.0
        made.timer = self._loop.call_later(wait_s, self._submit_report, key)

    async def reports(self, model: str) -> list[Json]:
        """Those of a model, the last death first; ServerError if the disk does not answer."""
        reading = self._submit(self._archive.reports, model)
        try:
            if reading is not None:
                async with asyncio.timeout(READ_LIMIT_S):
                    return await asyncio.wrap_future(reading)
        except TimeoutError:
            pass
        raise ServerError("unavailable", "the disk of the state directory does not answer", retry_after_s=READ_LIMIT_S)

    def close(self) -> None:
        """What waits for the gateways is written as it is. Not waited for: the thread ends with its last job."""
        for key in list(self._pending):
            self._submit_report(key)
        self._is_closed = True
        self._thread.shutdown(wait=False)

    def _submit_report(self, key: WorkerId) -> None:
        made = self._pending.pop(key)
        if made.timer is not None:
            made.timer.cancel()
        loss = self.in_flight(key)
        writing = self._submit(self._write, made.record, loss, made.artifact)
        if writing is None:
            self._record_lost(made.record, f"{MAX_JOBS} jobs wait for the disk of the state directory already")
            return
        writing.add_done_callback(lambda done: self._on_written(made.record, loss, done))

    def _write(self, case: CrashRecord, loss: InFlightSummary, artefact: Future[Json] | None) -> str:
        """In the thread. The digest was asked for before, and one thread does one thing after another."""
        found = artefact.result() if artefact is not None and artefact.done() else _UNKNOWN
        return self._archive.write(case.spec.name, crash_report(case, loss, digests.configuration(case.spec), found))

    def _on_written(self, case: CrashRecord, loss: InFlightSummary, done: Future[str]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: this brain is over
            self._loop.call_soon_threadsafe(self._record_written, case, loss, done)

    def _record_written(self, case: CrashRecord, loss: InFlightSummary, done: Future[str]) -> None:
        if self._is_closed:
            return  # the journal is closed
        error = done.exception()
        if isinstance(error, OSError):
            self._record_lost(case, f"the disk refused it: {error.strerror}")
            return
        text = f"{loss.in_flight} in flight, {loss.begun} of them begun" if loss.in_flight else "nothing was in flight"
        self._record(
            "bundle_written",
            case,
            text if loss.is_complete or not case.is_linked else f"{text}; not every gateway has told",
            bundle=done.result(),
            in_flight=loss.in_flight,
            begun=loss.begun,
            requests=loss.ids(),
        )

    def _record_lost(self, case: CrashRecord, why: str) -> None:
        self.lost_reports += 1
        self._record("bundle_lost", case, why, lost=self.lost_reports)

    def _record(self, name: str, case: CrashRecord, text: str, **fields: Any) -> None:  # JSON, as the journal takes it
        spec = case.spec
        self._journal.record(
            name,
            text,
            model=spec.name,
            instance=case.instance,
            generation=case.generation,
            version=spec.version,
            **fields,
        )

    def _submit(self, work: Callable[..., Any], *given: Any) -> Future[Any] | None:  # any job, with what it takes
        """A job for the thread, unless too many wait."""
        if self._jobs >= MAX_JOBS:
            return None
        self._jobs += 1
        job = self._thread.submit(work, *given)
        job.add_done_callback(self._on_job_done)
        return job

    def _on_job_done(self, _job: Future[Any]) -> None:  # of any job
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._forget_job)

    def _forget_job(self) -> None:
        self._jobs -= 1
