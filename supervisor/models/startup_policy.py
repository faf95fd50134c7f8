"""Which models a server begins with: the control mode's rule, then what people asked for by hand. Reads repositories.

none, poll   every model of the repositories
explicit     those that `--load-model` names; `*` is all
"""

from __future__ import annotations

from pathlib import Path

from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.models.loader import ModelLoader
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.processes.cleanup import remove_tree
from mmsup.supervisor.repository import scanner
from mmsup.supervisor.repository.scanner import RepositoryScan
from mmsup.supervisor.state.desired_state import DesiredState


def is_wanted_at_start(settings: Settings, name: str) -> bool:
    """Whether the control mode wants this model."""
    if settings.control_mode != "explicit":
        return True
    return name in settings.load_models or "*" in settings.load_models


def clean_scratch(scratch: str) -> None:
    """Remove what lives of a former server left; once, before anything is started."""
    for _ in remove_tree(scratch):
        pass
    Path(scratch).mkdir(mode=0o700, parents=True, exist_ok=True)


def register_all(found: RepositoryScan, settings: Settings, fleet: ModelSet) -> None:
    """Every model that was found, and every one that should have been."""
    for entry in found.models.values():
        fleet.register(entry)
    for name in settings.load_models:
        model = fleet.model(name)
        if name != "*" and name not in found.models and (model is None or not model.revisions):
            fleet.register(scanner.missing_model(name))


def start_models(
    found: RepositoryScan, settings: Settings, fleet: ModelSet, wanted: DesiredState, loads: ModelLoader
) -> None:
    """Begin with what is wanted."""
    register_all(found, settings, fleet)
    apply_desired_state(settings, fleet, wanted, loads)
    for model in fleet.models.values():
        model.had_outcome = not model.wanted


def apply_desired_state(settings: Settings, fleet: ModelSet, wanted: DesiredState, loads: ModelLoader) -> None:
    """Want what should be wanted: the last word by hand, else the rule."""
    for name in sorted(fleet.models):
        model, wish = fleet.models[name], wanted.get(name)
        if model.entry is None and not model.revisions:
            model.wanted = False  # nothing is left of it, and nothing can be made of it
            fleet.mark_changed(name)
        up = wish.up if wish is not None else is_wanted_at_start(settings, name)
        if model.entry is None or up is model.wanted:
            continue
        if not up:
            loads.stop_wanted(model)
        elif wish is not None and wish.config:
            loads.start_wanted(scanner.with_config(model.entry, wish.config), wish.config)
        else:
            loads.start_wanted(model.entry)
    for name in wanted.names():
        if name in fleet.models:
            fleet.models[name].unloaded = not fleet.models[name].wanted
