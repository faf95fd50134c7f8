"""The event log: starts, exits, loads and the like, in memory and in `events.jsonl` in the state directory.

The file is read back at the start. Times are wall-clock times, for people; nothing is decided by them.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.observability.rotating_file import LIMIT_BYTES, RotatingFile

EVENTS_KEPT: Final = 2000
RECENT_EVENTS: Final = 12
"""Events of one instance that are shown with an error about it."""

EVENT_NAMES: Final = frozenset({
    "server_start", "ready", "stopping", "control_reopened", "state_unreadable", "not_saved",
    "worker_spawn", "worker_ready", "worker_condemned", "worker_quarantined", "worker_exit", "worker_stopped",
    "worker_offloaded", "worker_restored", "offload_failed", "restore_failed", "restore_refused",
    "recycle", "recycle_failed", "load_failed", "load_timeout", "backoff", "crash_loop",
    "load_refused", "memory_overbooked",
    "model_loaded", "model_unloaded", "model_reloaded", "model_uploaded",
    "model_asleep", "model_waking", "wake_refused", "room_made", "memory_pressure",
    "bundle_written", "bundle_lost",
    "request_quarantined", "quarantine_cleared",
    "gpu_silent", "gpu_back", "device_set_aside", "device_released",
    "repository_lost", "repository_back",
    "gateway_spawn", "gateway_exit", "gateway_stopped", "spare_spawn", "spare_exit", "brain_exit", "readopted",
    "grpc_front_spawn", "grpc_front_exit", "grpc_front_fallback",
    "zygote_ready", "zygote_exit", "zygote_end", "not_forked",
    "group_started", "group_ended",
    "upgrade_begun", "upgraded", "upgrade_failed",
})  # fmt: skip
"""`worker_exit`: exactly one for each unexpected exit. A worker that was asked to stop has `worker_stopped`."""

Event = dict[str, Any]  # JSON: time, event, model, instance, generation, text, and fields by name


class EventLog:
    """The newest EVENTS_KEPT events, oldest first."""

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._file = RotatingFile(path)
        self._now = now
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._listeners: set[Callable[[Event], None]] = set()
        self.problem = ""
        """Why events of before are not known; empty if all are."""
        for each in (self._file.previous_path(), path):
            self._read(each)
        self._ends_in_partial_line = _has_partial_line(path)
        """The last line has no newline, so the next event must begin with one."""

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
        """Add an event, write it to the file, and pass it to the subscribers."""
        assert name in EVENT_NAMES, f"{name!r} is not a known event name"
        time = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event: Event = {"time": time, "event": name, "model": model, "instance": instance, "generation": generation}
        event |= {"text": text, **fields}
        self._events.append(event)
        self._append(json.dumps(event, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        for listener in tuple(self._listeners):
            listener(event)
        return event

    def _read(self, path: Path) -> None:
        """Add the newest events of a file. Single lines that crashes have cut are passed over without a word."""
        try:
            with path.open("rb") as file:  # a file of ours is no larger, and a damaged one may be of any size
                file.seek(max(0, os.fstat(file.fileno()).st_size - 2 * LIMIT_BYTES))
                data = file.read(2 * LIMIT_BYTES)
            lines = [line for line in data.splitlines() if line.strip()][-EVENTS_KEPT:]
        except FileNotFoundError:
            return
        except OSError as error:
            self.problem = f"{path.name} cannot be read: {error.strerror}; earlier events are not shown"
            return
        events = [event for line in lines if (event := _parse_event(line)) is not None]
        self._events.extend(events)
        unreadable = len(lines) - len(events)
        if unreadable > max(1, len(events)):
            text = f"{unreadable} lines of {path.name} are no events: they stay in the file"
            self.problem = f"{text}, and are not shown"

    def _append(self, line: bytes) -> None:
        lost = self._file.lost_writes
        self._file.write(b"\n" + line if self._ends_in_partial_line else line)
        self._ends_in_partial_line = self._file.lost_writes > lost

    def last(self, count: int = EVENTS_KEPT, model: str = "") -> list[Event]:
        """The newest `count` events of one model, or of all, oldest first."""
        chosen = [each for each in self._events if not model or each.get("model") == model]
        return chosen[-count:] if count > 0 else []

    def recent(self, instance: int) -> list[Event]:
        return [each for each in self._events if each.get("instance") == instance][-RECENT_EVENTS:]

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with each new event, until the returned function is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def close(self) -> None:
        self._file.close()


def _has_partial_line(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # it does not exist, or is empty
        return False


def _parse_event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and "event" in event else None
