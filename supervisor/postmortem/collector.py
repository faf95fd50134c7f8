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
from mmsup.ipc.messages.gateway_control import Ended
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.instances.context import LifeKey
from mmsup.supervisor.observability.event_log import Journal
from mmsup.supervisor.postmortem import digests
from mmsup.supervisor.postmortem.archive import Archive
from mmsup.supervisor.postmortem.crash_report import Case, bundle
from mmsup.supervisor.postmortem.in_flight import Casualties, Loss

Json = dict[str, Any]  # one JSON object

TOLD_S: Final = 0.25
"""Gateways hear of a death when we do; one that has not told by now hangs, or is dead itself."""
BACKLOG: Final = 64
"""Jobs that may wait for the disk; a bundle beyond them is lost."""
READ_S: Final = 5.0
_UNKNOWN: Final = {"sha256": "", "of": "nothing: the disk was too slow"}


@dataclass(slots=True)
class _Open:
    """A case that waits for the gateways."""

    case: Case
    artefact: Future[Json] | None
    timer: asyncio.TimerHandle | None = field(default=None)


class Forensics:
    """One per brain, from `start` to `close`."""

    def __init__(self, archive: Archive, journal: Journal, places: Callable[[], Set[int]]) -> None:
        """`places`: the gateways that live and can be heard."""
        self.lost = 0
        """Bundles that could not be written."""
        self._archive = archive
        self._journal = journal
        self._places = places
        self._casualties = Casualties()
        self._artefacts = digests.Artefacts()
        self._open: dict[LifeKey, _Open] = {}
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "forensics")
        self._over = False
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Begin with what there is."""
        self._submit(self._archive.open)

    def begun(self, spec: ModelSpec) -> Future[Json] | None:
        """A life begins, or is taken over: the digest of what it loads, once it is read. None: the disk is too slow."""
        return self._submit(self._artefacts.digest, spec.directory)

    def told(self, place: int, ended: Ended) -> None:
        """A gateway says what was in flight."""
        self._casualties.told(place, ended)
        key = ended.instance, ended.generation
        if key in self._open and self.loss(key).is_complete:
            self._file(key)

    def loss(self, key: LifeKey) -> Loss:
        """What was in flight at the end of a life, as far as it is known now."""
        return self._casualties.loss(key, self._places())

    def died(self, case: Case, artefact: Future[Json] | None) -> None:
        """A death, with all that is known but what the gateways have yet to tell."""
        key = case.instance, case.generation
        made = self._open[key] = _Open(case, artefact)
        wait_s = TOLD_S if case.linked and not self.loss(key).is_complete else 0.0
        made.timer = self._loop.call_later(wait_s, self._file, key)

    async def bundles(self, model: str) -> list[Json]:
        """Those of a model, the last death first; ServerError if the disk does not answer."""
        reading = self._submit(self._archive.bundles, model)
        try:
            if reading is not None:
                async with asyncio.timeout(READ_S):
                    return await asyncio.wrap_future(reading)
        except TimeoutError:
            pass
        raise ServerError("unavailable", "the disk of the state directory does not answer", retry_after_s=READ_S)

    def close(self) -> None:
        """What waits for the gateways is written as it is. Not waited for: the thread ends with its last job."""
        for key in list(self._open):
            self._file(key)
        self._over = True
        self._thread.shutdown(wait=False)

    def _file(self, key: LifeKey) -> None:
        made = self._open.pop(key)
        if made.timer is not None:
            made.timer.cancel()
        loss = self.loss(key)
        writing = self._submit(self._write, made.case, loss, made.artefact)
        if writing is None:
            self._told_lost(made.case, f"{BACKLOG} jobs wait for the disk of the state directory already")
            return
        writing.add_done_callback(lambda done: self._hand_back(made.case, loss, done))

    def _write(self, case: Case, loss: Loss, artefact: Future[Json] | None) -> str:
        """In the thread. The digest was asked for before, and one thread does one thing after another."""
        found = artefact.result() if artefact is not None and artefact.done() else _UNKNOWN
        return self._archive.put(case.spec.name, bundle(case, loss, digests.configuration(case.spec), found))

    def _hand_back(self, case: Case, loss: Loss, done: Future[str]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: this brain is over
            self._loop.call_soon_threadsafe(self._filed, case, loss, done)

    def _filed(self, case: Case, loss: Loss, done: Future[str]) -> None:
        if self._over:
            return  # the journal is closed
        error = done.exception()
        if isinstance(error, OSError):
            self._told_lost(case, f"the disk refused it: {error.strerror}")
            return
        text = f"{loss.in_flight} in flight, {loss.begun} of them begun" if loss.in_flight else "nothing was in flight"
        self._record(
            "bundle_written",
            case,
            text if loss.is_complete or not case.linked else f"{text}; not every gateway has told",
            bundle=done.result(),
            in_flight=loss.in_flight,
            begun=loss.begun,
            requests=loss.ids(),
        )

    def _told_lost(self, case: Case, why: str) -> None:
        self.lost += 1
        self._record("bundle_lost", case, why, lost=self.lost)

    def _record(self, name: str, case: Case, text: str, **fields: Any) -> None:  # JSON, as the journal takes it
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
        if self._waiting >= BACKLOG:
            return None
        self._waiting += 1
        job = self._thread.submit(work, *given)
        job.add_done_callback(self._done)
        return job

    def _done(self, _job: Future[Any]) -> None:  # of any job
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._one_less)

    def _one_less(self) -> None:
        self._waiting -= 1
