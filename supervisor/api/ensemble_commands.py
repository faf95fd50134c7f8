"""Loads and unloads of ensembles with the models that they need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mmsup.supervisor.api.ensemble_views import step_names
from mmsup.supervisor.models.loader import ModelLoader
from mmsup.supervisor.models.model_set import ModelSet


async def load_with_steps(
    loader: ModelLoader, model_set: ModelSet, name: str, config: str, on_progress: Callable[[str], None]
) -> Any:  # JSON
    """Load a model, and the steps of an ensemble that are not loaded; the result for the model itself."""
    result = await loader.load(name, config, on_progress)
    model = model_set.model(name)
    for step in step_names(model) if model is not None else ():
        known = model_set.model(step)
        if known is None or not known.wanted:
            on_progress(f"loading its step {step}")
            await load_with_steps(loader, model_set, step, "", on_progress)
    return result


async def unload_with_steps(
    unload: Callable[[str], Awaitable[Any]],  # JSON
    model_set: ModelSet,
    name: str,
) -> Any:  # JSON
    """Unload a model, and the steps of an ensemble that no other one needs; the result for the model itself."""
    model = model_set.model(name)
    steps = step_names(model) if model is not None else []
    result = await unload(name)
    for step in steps:
        known = model_set.model(step)
        others = [each for each in model_set.models.values() if each.wanted and step in step_names(each)]
        if known is not None and known.wanted and not others:
            await unload_with_steps(unload, model_set, step)
    return result
