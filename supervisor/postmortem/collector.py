"""Collects what is known of a worker's exit into a crash report on disk, beside everything else.

Gateways get a moment to report what was in flight. Then the record goes to a thread, the controller's only one, which
reads artifacts and writes reports: a disk that is slow, full or gone costs reports and nothing else, and each lost one
is an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.errors import ServerError
from mmsup.ipc.messages.gateway_control import LinkClosed
from mmsup.ipc.paths import WorkerId
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.postmortem import content_digests
from mmsup.supervisor.postmortem.archive import CrashArchive
from mmsup.supervisor.postmortem.crash_report import CrashRecord, crash_report
from mmsup.supervisor.postmortem.disk_thread import MAX_JOBS, DiskThread
from mmsup.supervisor.postmortem.in_flight import InFlightAtExit, InFlightSummary

Json = dict[str, Any]  # one JSON object

GATEWAY_WAIT_S: Final = 0.25
"""Gateways learn of an exit when the controller does; one that has not reported by then hangs, or is dead itself."""
READ_LIMIT_S: Final = 5.0
_UNKNOWN: Final = {"sha256": "", "of": "nothing: the disk was too slow"}


@dataclass(frozen=True, slots=True)
class _PendingReport:
    record: CrashRecord
    artifact: Future[Json] | None
    timer: asyncio.TimerHandle


class CrashCollector:
    """One per controller, from `start` to `close`."""

    def __init__(self, archive: CrashArchive, event_log: EventLog, live_gateways: Callable[[], Set[int]]) -> None:
        """`live_gateways`: the numbers of those that can report."""
        self.lost_reports = 0
        self._archive = archive
        self._event_log = event_log
        self._live_gateways = live_gateways
        self._in_flight = InFlightAtExit()
        self._digests = content_digests.ArtifactDigests()
        self._pending: dict[WorkerId, _PendingReport] = {}
        self._thread = DiskThread()
        self._is_closed = False

    def start(self) -> None:
        """Read what earlier controllers wrote."""
        self._thread.submit(self._archive.open)

    def run_on_disk(self, write: Callable[[bytes], None], contents: bytes) -> object:
        """Run a function in the thread; None if the disk is too slow, and it was not."""
        return self._thread.submit(write, contents)

    def artifact_digest(self, spec: ModelSpec) -> Future[Json] | None:
        """The digest of what a worker loads, read when it starts or is taken over; None if the disk is too slow."""
        return self._thread.submit(self._digests.digest, spec.directory)

    def on_worker_ended(self, gateway: int, report: LinkClosed) -> None:
        self._in_flight.add(gateway, report)
        worker = report.instance, report.generation
        if worker in self._pending and self.in_flight(worker).is_complete:
            self._submit_report(worker)

    def on_relinked(self, worker: WorkerId) -> None:
        self._in_flight.forget(worker)

    def in_flight(self, worker: WorkerId) -> InFlightSummary:
        """What was in flight at a worker's exit, as far as it is known now."""
        return self._in_flight.summary(worker, self._live_gateways())

    def collect(self, record: CrashRecord, in_flight: InFlightSummary, artifact: Future[Json] | None) -> None:
        """A worker has exited; `in_flight` is what is known now."""
        worker = record.instance, record.generation
        wait_s = GATEWAY_WAIT_S if record.is_linked and not in_flight.is_complete else 0.0
        timer = asyncio.get_running_loop().call_later(wait_s, self._submit_report, worker)
        self._pending[worker] = _PendingReport(record, artifact, timer)

    async def reports(self, model: str) -> list[Json]:
        """The crash reports of a model, newest first; ServerError if the disk does not answer."""
        reading = self._thread.submit(self._archive.reports, model)
        try:
            if reading is not None:
                async with asyncio.timeout(READ_LIMIT_S):
                    return await asyncio.wrap_future(reading)
        except TimeoutError:
            pass
        raise ServerError("unavailable", "the disk of the state directory does not answer", retry_after_s=READ_LIMIT_S)

    def close(self) -> None:
        """Write pending reports as they are. Does not wait for the disk."""
        for worker in list(self._pending):
            self._submit_report(worker)
        self._is_closed = True
        self._thread.close()

    def _submit_report(self, worker: WorkerId) -> None:
        pending = self._pending.pop(worker)
        pending.timer.cancel()
        record, in_flight = pending.record, self.in_flight(worker)
        writing = self._thread.submit(self._write, record, in_flight, pending.artifact)
        if writing is None:
            self._record_lost(record, f"{MAX_JOBS} jobs wait for the disk of the state directory already")
            return
        writing.add_done_callback(
            lambda done: self._thread.call_loop(lambda: self._record_written(record, in_flight, done))
        )

    def _write(self, record: CrashRecord, in_flight: InFlightSummary, artifact: Future[Json] | None) -> str:
        """In the thread. The digest was submitted earlier, so it is done, if there is one."""
        digest = artifact.result() if artifact is not None and artifact.done() else _UNKNOWN
        report = crash_report(record, in_flight, content_digests.configuration(record.spec), digest)
        return self._archive.write(record.spec.name, report)

    def _record_written(self, record: CrashRecord, in_flight: InFlightSummary, done: Future[str]) -> None:
        if self._is_closed:
            return  # so is the event log
        error = done.exception()
        if isinstance(error, OSError):
            self._record_lost(record, f"the disk refused it: {error.strerror}")
            return
        count, begun = in_flight.in_flight, in_flight.begun
        text = f"{count} in flight, {begun} of them begun" if count else "nothing was in flight"
        self._record(
            "bundle_written",
            record,
            text if in_flight.is_complete or not record.is_linked else f"{text}; not every gateway has reported",
            bundle=done.result(),
            in_flight=count,
            begun=begun,
            requests=in_flight.ids(),
        )

    def _record_lost(self, record: CrashRecord, why: str) -> None:
        self.lost_reports += 1
        self._record("bundle_lost", record, why, lost=self.lost_reports)

    def _record(self, name: str, record: CrashRecord, text: str, **fields: Any) -> None:  # JSON, as the event log takes
        spec = record.spec
        self._event_log.record(
            name,
            text,
            model=spec.name,
            instance=record.instance,
            generation=record.generation,
            version=spec.version,
            **fields,
        )
