"""Workers that are replaced while they serve: the new one is ready before the old one is let go.

The newcomer comes up in an edition of its own, which is `coming` as in a reload. Once it is ready the two change
places: it joins the release of the old one and is linked, and the old one drains in the edition that leaves. If the
newcomer cannot be loaded, or the old one ends first, the newcomer is dropped and nothing has changed; so does a brain
that takes over in between. Who is worn out is said by wear.py.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from dataclasses import dataclass
from typing import Final

from mmsup.supervisor import hands, memory, stuck, terms, wear
from mmsup.supervisor.fleet import Fleet
from mmsup.supervisor.instance import Instance
from mmsup.supervisor.release import Edition, Release, Role
from mmsup.supervisor.site import LifeKey
from mmsup.supervisor.terms import State
from mmsup.supervisor.units import size_text

EVERY_S: Final = 0.5
PATIENCE_S: Final = 60.0
"""After a newcomer that could not be loaded, until the next one."""


@dataclass(frozen=True, slots=True, eq=False)
class _Renewal:
    old: Instance
    new: Instance
    edition: Edition
    """The newcomer's, and afterwards the old one's."""


class Renewals:
    """Those that are under way, and the look that begins them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._active: dict[int, _Renewal] = {}
        """By the number of the old one."""
        self._first_bytes: dict[LifeKey, int] = {}
        self._not_before_s: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look."""
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._look)

    def close(self) -> None:
        """Look no more; what is under way is the next brain's to drop."""
        if self._timer is not None:
            self._timer.cancel()

    def begin(self, old: Instance, reason: str, text: str) -> None:
        """Let another take the place of one that serves."""
        name = old.release.spec.name
        edition = self._fleet.edition_of(old)
        assert edition is not None, f"instance {old.id} is of no edition"
        assert old.id not in self._active, f"instance {old.id} is being replaced already"
        old.record("recycle", text, reason=reason)
        release = Release(old.release.spec)
        coming = Edition(Role.COMING, edition.config, [release])
        self._fleet.models[name].editions.append(coming)
        new = self._fleet.add(release, self._fleet.next_instance)
        self._active[old.id] = _Renewal(old, new, coming)
        new.apply(terms.WantUp())

    def settled(self) -> None:
        """Something has changed: go on with what can be gone on with."""
        for renewal in list(self._active.values()):
            old, new = renewal.old, renewal.new
            if renewal.edition.role is not Role.COMING or not _serves(old):
                self._drop(renewal)
            elif new.state is State.READY:
                self._take_over(renewal)
            elif renewal.edition.load_failure() is not None:
                self._not_before_s[old.id] = time.monotonic() + PATIENCE_S
                self._drop(renewal)

    def _drop(self, renewal: _Renewal) -> None:
        del self._active[renewal.old.id]
        if renewal.edition.role is Role.COMING:
            self._fleet.retire(renewal.edition)

    def _take_over(self, renewal: _Renewal) -> None:
        old, new = renewal.old, renewal.new
        del self._active[old.id]
        staying, leaving = old.release, new.release
        staying.instances[staying.instances.index(old)] = new
        leaving.instances[:] = [old]
        old.release, new.release = leaving, staying
        renewal.edition.role = Role.LEAVING
        hands.link(new)
        old.apply(terms.WantDown())
        self._fleet.touch(staying.spec.name)

    # The look.

    def _look(self) -> None:
        self.start()
        lives = [each for each in self._fleet.instances() if _serves(each)]
        known = {each.key for each in lives}
        self._first_bytes = {key: size for key, size in self._first_bytes.items() if key in known}
        for instance in lives:
            self._judge(instance)

    def _judge(self, instance: Instance) -> None:
        reading = self._read(instance)
        reason = wear.worn(reading, instance.release.spec.recycle_memory_bytes)
        if not reason or not self._may(instance, reading):
            return
        if reason == "rss":
            held, first = size_text(reading.memory_bytes), size_text(reading.first_bytes)
            text = f"it holds {held}, and held {first} at first"
        elif reason == "gpu_oom":
            text = f"{reading.refusals} requests found no device memory within {wear.PERIOD_S:g} s"
        else:
            text = f"{reading.files} of {reading.files_limit} descriptors are open"
        self.begin(instance, reason, f"{text}: another takes its place once that is ready")

    def _may(self, instance: Instance, reading: wear.Reading) -> bool:
        edition = self._fleet.edition_of(instance)
        model = self._fleet.models[instance.release.spec.name]
        return (
            edition is not None
            and edition.role is Role.CURRENT
            and model.edition(Role.COMING) is None
            and time.monotonic() >= self._not_before_s.get(instance.id, 0.0)
            and stuck.is_replaced(reading.first_bytes, memory.machine().available_bytes, 1)
        )

    def _read(self, instance: Instance) -> wear.Reading:
        tenure, life = instance.tenure, instance.life
        if tenure is None or life is None:
            return wear.Reading()
        held = first = 0
        if instance.release.spec.recycle_memory_bytes is not None:
            held = memory.footprint_bytes(tenure.group, life.pid) or 0
            first = self._first_bytes.setdefault(instance.key, held)
        now_s = time.monotonic()
        refusals = tenure.refusals.seen(life.progress().refused, now_s)
        return wear.Reading(held, first, *files_of(life.pid), refusals, now_s - tenure.ready_s)


def files_of(pid: int) -> tuple[int, int]:
    """How many descriptors a process has open, and how many it may; zeros if it is gone."""
    folder = f"/proc/{pid}/fd"
    try:
        # Linux 6.2 and later tell the number as the size of the folder, which costs nothing to ask.
        count = os.stat(folder).st_size or len(os.listdir(folder))
        return count, resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except OSError:
        return 0, 0


def _serves(instance: Instance) -> bool:
    return instance.situation.wanted and instance.state is State.READY and instance.life is not None
