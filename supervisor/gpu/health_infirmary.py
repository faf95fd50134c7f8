"""The GPUs on which contexts were lost, and those that are set aside for it. What sets one aside is said by aside.py.

Nothing new goes to a device that is set aside; whoever serves there goes on. It stays so until somebody releases it, or
the server ends: the brain tells its successor.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mmsup.supervisor.gpu import health
from mmsup.supervisor.gpu.inventory import Gpu
from mmsup.supervisor.gpu.monitor import Lookout
from mmsup.supervisor.observability.event_log import Journal
from mmsup.supervisor.state.checkpoint import DeviceNote, FaultNote


class Infirmary:
    """By what stands in CUDA_VISIBLE_DEVICES, as a rule a UUID."""

    def __init__(self, lookout: Lookout, journal: Journal, changed: Callable[[], None]) -> None:
        """`changed`: what is to be remembered is not as it was."""
        self.reasons: dict[str, str] = {}
        """Why nothing new goes there."""
        self._faults: dict[str, tuple[health.Fault, ...]] = {}
        self._lookout = lookout
        self._journal = journal
        self._changed = changed

    def faulted(self, word: str, model: str) -> None:
        """A worker of this model left that device with a GPU fault."""
        now_s = time.monotonic()
        fault = health.Fault(now_s, model)
        self._faults[word] = health.recent([*self._faults.get(word, ()), fault], now_s)
        self._judge(word)  # the end of that life is about to be remembered, and this with it

    def look(self) -> None:
        """NVML has said something new of them."""
        if any([self._judge(word) for word in self._faults]):  # noqa: C419 - of each
            self._changed()

    def _judge(self, word: str) -> bool:
        """Whether it is set aside from now on."""
        reason = health.why(self._faults[word], self._lookout.says_against(word), time.monotonic())
        if not reason or word in self.reasons:
            return False
        self.reasons[word] = reason
        text = f"{self._lookout.title(word)} is set aside: {reason}; whoever serves there goes on"
        self._journal.record("device_set_aside", text, device=word)
        return True

    def release(self, word: str) -> bool:
        """Somebody says that it is well; whether it had been set aside."""
        self._faults.pop(word, None)
        if self.reasons.pop(word, None) is None:
            return False
        self._journal.record("device_released", f"{self._lookout.title(word)} was released by hand", device=word)
        self._changed()
        return True

    def count(self, word: str) -> int:
        """Faults there that still count."""
        return len(health.recent(self._faults.get(word, ()), time.monotonic()))

    def notes(self) -> tuple[DeviceNote, ...]:
        """All of it, to be remembered, with the devices in their order: the next brain numbers them as this one."""
        known = {each.uuid: each for each in self._lookout.gpus.devices} if self._lookout.gpus is not None else {}
        others = sorted((self._faults.keys() | self.reasons.keys()) - known.keys())
        return tuple(self._note(word, known.get(word)) for word in (*known, *others))

    def _note(self, word: str, known: Gpu | None) -> DeviceNote:
        faults = tuple(FaultNote(each.at_s, each.model) for each in self._faults.get(word, ()))
        index, name = (known.index, known.name) if known is not None else (-1, "")
        return DeviceNote(word, index, name, self.reasons.get(word, ""), faults)

    def restore(self, notes: tuple[DeviceNote, ...]) -> None:
        """As the brain before us left it."""
        for note in notes:
            self._faults[note.device] = tuple(health.Fault(each.at_s, each.model) for each in note.faults)
            if note.reason:
                self.reasons[note.device] = note.reason
        self._lookout.restore([Gpu(each.index, each.device, each.name, 0) for each in notes if each.index >= 0])
