"""Compares what the server's metrics count as served with what the clients saw. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mmsup.supervisor.chaos.analysis.timeline import Timeline
from mmsup.supervisor.chaos.plan.catalog import KEEPER_FAULTS, ModelRole
from mmsup.supervisor.chaos.plan.fault_model import CALLED


def metrics_agree(timeline: Timeline) -> Iterator[str]:
    """Differences between the successes in the metrics and those that the clients saw."""
    if len(timeline.served_counts) != 2 or any(each.fault_class.name in KEEPER_FAULTS for each in timeline.faults):
        return  # the counters did not survive
    before, after = timeline.served_counts
    hidden = sum(each.fault_class.name == "leave" for each in timeline.faults)
    for model in timeline.run.models:
        requests = timeline.of_model(model)
        right = sum(each.is_right for each in requests)
        unseen = sum(each.end is None or each.end.kind not in ("right", "error") for each in requests) + hidden
        served = after.success.get(model, 0) - before.success.get(model, 0)
        most = math.inf if _is_asked_by_models(timeline, model) else right + unseen
        if not right <= served <= most:
            yield f"{model}: the server counted {served:.0f} served, its clients {right} to {most}"


def _is_asked_by_models(timeline: Timeline, model: str) -> bool:
    """Whether other models send it requests as well, which no client sees."""
    if timeline.role(model) in (ModelRole.CALLING, ModelRole.CALLED):
        return True
    return model == CALLED and any(each.fault_class.name == "calling" for each in timeline.faults)
