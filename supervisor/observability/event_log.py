"""The journal: what happened, once each, for people.

Bounded in memory, appended to `events.jsonl` in the state directory, read back at the start. A *story* is the last
events of one instance; it goes with every error about it. The wall clock stands here because people read it; nothing
is decided by it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.observability.rotating_file import RotatingFile

EVENTS_KEPT: Final = 2000
RECENT_EVENTS: Final = 12

EVENT_NAMES: Final = frozenset({
    "server_start", "ready", "stopping", "control_reopened",
    "worker_spawn", "worker_ready", "worker_condemned", "worker_quarantined", "worker_exit", "worker_stopped",
    "recycle", "recycle_failed", "load_failed", "load_timeout", "backoff", "crash_loop",
    "model_loaded", "model_unloaded", "model_reloaded",
    "bundle_written", "bundle_lost",
    "request_quarantined", "quarantine_cleared",
    "gpu_silent", "gpu_back", "device_set_aside", "device_released",
    "repository_lost", "repository_back",
    "gateway_spawn", "gateway_exit", "gateway_stopped", "spare_spawn", "spare_exit", "brain_exit", "readopted",
    "upgrade_begun", "upgraded", "upgrade_failed",
})  # fmt: skip
"""`worker_exit`: exactly one per death. A worker that leaves because it was told to is `worker_stopped`."""

Event = dict[str, Any]  # JSON: time, event, model, instance, generation, text, and fields by name


class EventLog:
    """All events that are still known, oldest first."""

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._file = RotatingFile(path)
        self._now = now
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._listeners: set[Callable[[Event], None]] = set()
        for each in (self._file.previous_path(), path):
            self._events.extend(_read_events(each))
        self._ends_in_partial_line = _has_partial_line(path)
        """The last line may have no end: what comes next would be one with it."""

    def record(
        self,
        name: str,
        text: str = "",
        *,
        model: str = "",
        instance: int | None = None,
        generation: int | None = None,
        **fields: Any,  # JSON scalars and lists
    ) -> Event:
        """Write down that something happened."""
        assert name in EVENT_NAMES, f"{name!r} is no event of the catalogue"
        time = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event: Event = {"time": time, "event": name, "model": model, "instance": instance, "generation": generation}
        event |= {"text": text, **fields}
        self._events.append(event)
        self._append(json.dumps(event, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        for listener in tuple(self._listeners):
            listener(event)
        return event

    def _append(self, line: bytes) -> None:
        lost = self._file.lost_writes
        self._file.write(b"\n" + line if self._ends_in_partial_line else line)
        self._ends_in_partial_line = self._file.lost_writes > lost

    def last(self, count: int = EVENTS_KEPT, model: str = "") -> list[Event]:
        """The newest `count` events, of one model or of all, oldest first."""
        chosen = [each for each in self._events if not model or each.get("model") == model]
        return chosen[-count:] if count > 0 else []

    def recent(self, instance: int) -> list[Event]:
        """The last events of one instance."""
        return [each for each in self._events if each.get("instance") == instance][-RECENT_EVENTS:]

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with each event from now on, until the function that comes back is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _has_partial_line(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # there is none, or it is empty
        return False


def _read_events(path: Path) -> Iterator[Event]:
    """The events of a file; a line that was cut by a crash is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines[-EVENTS_KEPT:]:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
