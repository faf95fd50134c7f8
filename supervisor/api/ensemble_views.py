"""What the status says of ensembles: their steps, and that they are not ready while one of these is not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.sleep_state import ASLEEP

Json = dict[str, Any]  # one JSON object
READY: Final = "ready"


def with_steps(row: Json, model: Model, models: Mapping[str, Model]) -> Json:
    """The row of a model, if it is an ensemble with `steps` and their states, of which the first that does not serve
    gives its own."""
    names = step_names(model)
    if not names or row.get("state") != READY:
        return row
    steps = [_step(name, models) for name in names]
    late = next((each for each in steps if each["state"] not in (READY, ASLEEP)), None)
    if late is None:
        return {**row, "steps": steps}
    reason = ": ".join(filter(None, (f"step '{late['model']}' is {late['state']}", late["reason"])))
    shown = {**row, "state": late["state"], "reason": reason, "steps": steps}
    return shown | ({"versions": dict.fromkeys(row["versions"], late["state"])} if "versions" in row else {})


def index_row(row: Json, model: Model, models: Mapping[str, Model]) -> Json:
    """The row of a model in Triton's index."""
    if row.get("state") != "READY" or not step_names(model):
        return row
    shown = with_steps({"state": READY, "reason": ""}, model, models)
    return row if shown["state"] == READY else {**row, "state": "UNAVAILABLE", "reason": shown["reason"]}


def step_names(model: Model) -> list[str]:
    """The models that an ensemble needs, in order; none of any other model."""
    specs = [each.spec for each in model.active.versions] if model.active else []
    return list(dict.fromkeys(step.model for spec in specs for step in spec.steps))


def _step(name: str, models: Mapping[str, Model]) -> Json:
    model = models.get(name)
    if model is None:
        return {"model": name, "state": "missing", "reason": "no repository holds it"}
    row = {"state": str(model.state()), "reason": model.reason()}
    shown = with_steps(row, model, {key: each for key, each in models.items() if each is not model})
    return {"model": name, "state": shown["state"], "reason": shown["reason"]}
