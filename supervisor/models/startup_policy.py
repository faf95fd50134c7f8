"""Which models a server starts with: the rule of its control mode, overridden by the desired state of single models.

none, poll   every model of the repositories
explicit     those that `--load-model` names; `*` is all
on-demand    every model of the repositories, each asleep until somebody asks for it

A model's own `load: on-demand` or `load: start` goes before the mode where that has it started.
"""

from __future__ import annotations

import time
from pathlib import Path

from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.models.loader import LoadContext, ModelLoader, record_errors
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.sleep_state import SleepReason
from mmsup.supervisor.processes.cleanup import remove_tree
from mmsup.supervisor.repository import scanner
from mmsup.supervisor.repository.scanner import ModelEntry, RepositoryScan


def is_wanted_at_start(settings: Settings, name: str) -> bool:
    if settings.control_mode != "explicit":
        return True
    return name in settings.load_models or "*" in settings.load_models


def is_on_demand(settings: Settings, entry: ModelEntry) -> bool:
    """Whether the model is asleep until somebody asks for it. The options of a model are those of all its versions."""
    return bool(entry.specs) and entry.specs[0].is_on_demand(settings.control_mode)


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


def start_asleep(context: LoadContext, entry: ModelEntry, config: str) -> None:
    """Have a model ready to be asked, and loaded when somebody does."""
    model = context.model_set.register(entry)
    model.wanted = True
    model.sleep.fall_asleep(SleepReason.NOT_ASKED, time.monotonic(), config)
    if entry.errors:
        record_errors(context, entry)


def needed_by_ensembles(context: LoadContext) -> set[str]:
    """The models that are steps of ensembles which shall serve."""
    entries = {name: each.entry for name, each in context.model_set.models.items() if each.entry is not None}
    todo = [name for name in entries if is_wanted(context, name, context.model_set.models[name])]
    needed = set[str]()
    while todo:
        entry = entries.get(todo.pop())
        steps = {step.model for spec in entry.specs for step in spec.steps} if entry is not None else set[str]()
        todo += steps - needed
        needed |= steps
    return needed


def apply_desired_state(context: LoadContext, loader: ModelLoader) -> None:
    """Start and stop models until those are wanted that should be: the desired state says which, else the rule."""
    model_set, desired_state = context.model_set, context.desired_state
    needed = needed_by_ensembles(context)
    for name in sorted(model_set.models):
        model, desired = model_set.models[name], desired_state.get(name)
        if model.entry is None and not model.revisions:
            model.wanted = False  # nothing is left of it
            model_set.mark_changed(name)
        up = desired.up if desired is not None else name in needed or is_wanted_at_start(context.settings, name)
        has_begun = model.active is not None or model.sleep.is_asleep
        is_started = model.wanted and (has_begun or not model.entry or not model.entry.specs)
        if model.entry is None or up is is_started:
            continue  # a model that waited for its files when the controller before ended is wanted, and not started
        if not up:
            loader.stop_wanted(model)
            continue
        config = desired.config if desired is not None else ""
        entry = scanner.with_config(model.entry, config) if config else model.entry
        is_put_to_sleep = desired is not None and desired.asleep
        if is_put_to_sleep or is_on_demand(context.settings, entry):
            start_asleep(context, entry, config)
        else:
            loader.start_wanted(entry, config)
    for name in desired_state.names():
        if name in model_set.models:
            model_set.models[name].unloaded = not model_set.models[name].wanted
