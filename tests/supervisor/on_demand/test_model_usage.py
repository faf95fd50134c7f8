"""What counts as use of a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.on_demand import model_usage
from mmsup.supervisor.on_demand.model_usage import ModelUsage


class Use:
    def used(self, _: float) -> Use:
        return self


def with_sequences(live: int) -> Model:
    """A model whose only worker does nothing and has so many sequences."""
    progress = Progress(Activity.IDLE, 0, 0, 0, 0, 0, sequences=live)
    worker = SimpleNamespace(
        state=InstanceState.READY, process=SimpleNamespace(progress=lambda: progress), worker_id=(1, 1), id=1
    )
    found: Any = SimpleNamespace(
        name="m", instances=lambda: iter([worker]), sleep=SimpleNamespace(last_use_s=0.0, use=Use())
    )
    return cast("Model", found)


@pytest.mark.parametrize(("live", "last_use_s"), [(0, 0.0), (2, 9.0)])
def test_a_model_with_a_live_sequence_is_in_use_though_no_request_comes(live: int, last_use_s: float) -> None:
    model, usage = with_sequences(live), ModelUsage()
    usage.update(model, 9.0)
    assert model.sleep.last_use_s == last_use_s
    assert model_usage.live_sequences(model) == live
