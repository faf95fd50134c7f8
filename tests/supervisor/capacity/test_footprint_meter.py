"""What a worker counts for between two measurements; instances are doubles."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.capacity.footprint_meter import FootprintMeter
from mmsup.supervisor.capacity.footprint_store import FootprintStore
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.processes import usage

SPEC = ModelSpec("m", "1", "/m/1", "model.py", "custom", "python")


class Worker:
    """An instance that is ready, and holds what it is told."""

    def __init__(self, number: int) -> None:
        self.requests = 0
        process = SimpleNamespace(pid=1, is_dead=False, progress=lambda: SimpleNamespace(requests=self.requests))
        worker = SimpleNamespace(group=None, sharers=1, ready_s=0.0, load_s=0.1)
        worker.gpu = SimpleNamespace(usage=SimpleNamespace(held_bytes=0))
        self.instance: Any = SimpleNamespace(
            id=number, generation=1, worker=worker, process=process, state=InstanceState.STARTING, is_forked=True
        )
        self.instance.revision = SimpleNamespace(spec=SPEC)
        self.instance.require_worker = lambda: worker


def test_until_a_worker_has_answered_requests_it_counts_for_what_it_held_then_in_an_earlier_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [500]
    monkeypatch.setattr(usage, "held_bytes", lambda *_: held[0])
    monkeypatch.setattr(usage, "released_bytes", lambda _: 100)
    meter = FootprintMeter(FootprintStore(tmp_path / "file"), lambda _: "digest", lambda *_: None)

    def life(number: int) -> list[int]:
        worker = Worker(number)
        held[0], found = 500, list[int]()
        for state, requests, held_bytes in (("STARTING", 0, 400), ("READY", 0, 500), ("READY", 3, 540)):
            worker.instance.state, worker.requests, held[0] = InstanceState[state], requests, held_bytes
            meter._readings.get(number, SimpleNamespace()).next_s = 0.0
            meter.observe(worker.instance)
            found.append(meter.held_bytes(worker.instance))
        return found

    assert life(1) == [400, 500, 540], "nothing is known of the first one"
    assert life(2) == [400, 540, 540]
