"""Which models a server begins with: the control mode's rule, then what people asked for by hand. Reads repositories.

none, poll   every model of the repositories
explicit     those that `--load-model` names; `*` is all
"""

from __future__ import annotations

from pathlib import Path

from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.models.loader import Loads
from mmsup.supervisor.models.model_set import Fleet
from mmsup.supervisor.processes.cleanup import removal
from mmsup.supervisor.repository import scanner
from mmsup.supervisor.repository.scanner import Repository
from mmsup.supervisor.state.desired_state import Wanted


def by_rule(settings: Settings, name: str) -> bool:
    """Whether the control mode wants this model."""
    if settings.control_mode != "explicit":
        return True
    return name in settings.load_models or "*" in settings.load_models


def sweep(scratch: str) -> None:
    """Remove what lives of a former server left; once, before anything is started."""
    for _ in removal(scratch):
        pass
    Path(scratch).mkdir(mode=0o700, parents=True, exist_ok=True)


def know_all(found: Repository, settings: Settings, fleet: Fleet) -> None:
    """Every model that was found, and every one that should have been."""
    for entry in found.models.values():
        fleet.know(entry)
    for name in settings.load_models:
        model = fleet.model(name)
        if name != "*" and name not in found.models and (model is None or not model.editions):
            fleet.know(scanner.missing(name))


def start(found: Repository, settings: Settings, fleet: Fleet, wanted: Wanted, loads: Loads) -> None:
    """Begin with what is wanted."""
    know_all(found, settings, fleet)
    converge(settings, fleet, wanted, loads)
    for model in fleet.models.values():
        model.was_decided = not model.wanted


def converge(settings: Settings, fleet: Fleet, wanted: Wanted, loads: Loads) -> None:
    """Want what should be wanted: the last word by hand, else the rule."""
    for name in sorted(fleet.models):
        model, wish = fleet.models[name], wanted.get(name)
        if model.entry is None and not model.editions:
            model.wanted = False  # nothing is left of it, and nothing can be made of it
            fleet.touch(name)
        up = wish.up if wish is not None else by_rule(settings, name)
        if model.entry is None or up is model.wanted:
            continue
        if not up:
            loads.stop(model)
        elif wish is not None and wish.config:
            loads.start(scanner.override(model.entry, wish.config), wish.config)
        else:
            loads.start(model.entry)
    for name in wanted.names():
        if name in fleet.models:
            fleet.models[name].unloaded = not fleet.models[name].wanted
