"""Which models a server starts with: the rule of its control mode, overridden by the desired state of single models.

none, poll   every model of the repositories
explicit     those that `--load-model` names; `*` is all
"""

from __future__ import annotations

from pathlib import Path

from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.models.loader import LoadContext, ModelLoader
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.processes.cleanup import remove_tree
from mmsup.supervisor.repository import scanner
from mmsup.supervisor.repository.scanner import RepositoryScan


def is_wanted_at_start(settings: Settings, name: str) -> bool:
    if settings.control_mode != "explicit":
        return True
    return name in settings.load_models or "*" in settings.load_models


def is_wanted(context: LoadContext, name: str, model: Model | None) -> bool:
    """Whether a model of which files were found shall serve. `model`: what is known of it."""
    desired = context.desired_state.get(name)
    if desired is not None:
        return desired.up
    return (model is not None and model.wanted) or is_wanted_at_start(context.settings, name)


def clean_scratch(scratch: str) -> None:
    """Remove what the workers of an earlier server left; once, before any process is started."""
    for _ in remove_tree(scratch):
        pass
    Path(scratch).mkdir(mode=0o700, parents=True, exist_ok=True)


def register_all(found: RepositoryScan, context: LoadContext) -> None:
    """Register every model that was found, and every one that is named in the settings and was not."""
    model_set = context.model_set
    for entry in found.models.values():
        model_set.register(entry)
    for name in context.settings.load_models:
        model = model_set.model(name)
        if name != "*" and name not in found.models and (model is None or not model.revisions):
            model_set.register(scanner.missing_model(name))


def start_models(found: RepositoryScan, context: LoadContext, loader: ModelLoader) -> None:
    register_all(found, context)
    apply_desired_state(context, loader)
    for model in context.model_set.models.values():
        model.had_outcome = model.all_had_outcome = not model.wanted


def apply_desired_state(context: LoadContext, loader: ModelLoader) -> None:
    """Start and stop models until those are wanted that should be: the desired state says which, else the rule."""
    model_set, desired_state = context.model_set, context.desired_state
    for name in sorted(model_set.models):
        model, desired = model_set.models[name], desired_state.get(name)
        if model.entry is None and not model.revisions:
            model.wanted = False  # nothing is left of it
            model_set.mark_changed(name)
        up = desired.up if desired is not None else is_wanted_at_start(context.settings, name)
        is_started = model.wanted and (model.active is not None or not model.entry or not model.entry.specs)
        if model.entry is None or up is is_started:
            continue  # a model that waited for its files when the controller before ended is wanted, and not started
        if not up:
            loader.stop_wanted(model)
        elif desired is not None and desired.config:
            loader.start_wanted(scanner.with_config(model.entry, desired.config), desired.config)
        else:
            loader.start_wanted(model.entry)
    for name in desired_state.names():
        if name in model_set.models:
            model_set.models[name].unloaded = not model_set.models[name].wanted
