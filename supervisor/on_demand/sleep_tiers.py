"""Where a model is to be while it is asleep, by the facts of this moment; decided by capacity/moves.py."""

from __future__ import annotations

from mmsup.supervisor.capacity import moves
from mmsup.supervisor.capacity.moves import MoveEstimate, MoveRefused, TierChoice, TierFacts
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.on_demand import model_usage


class SleepTiers:
    def __init__(self, model_set: ModelSet) -> None:
        self._model_set = model_set

    def choose(self, model: Model, room_bytes: int | None = None, *, is_host_needed: bool = False) -> TierChoice:
        """`room_bytes`: what the host has room for, if that is known. `is_host_needed`: it goes to sleep for the memory
        of the host."""
        active, refused = model.active, self.refused(model)
        rule = active.versions[0].spec.sleep if active is not None and active.versions else "unload"
        if refused is not None:
            return moves.choose(TierFacts(rule, refused, is_host_needed, 0, MoveEstimate(0, 0), 0.0))
        load_s = model_usage.load_s(model) or 0.0
        if room_bytes is None:
            room_bytes = self._model_set.memory.host_room_bytes()
        return moves.choose(TierFacts(rule, None, is_host_needed, room_bytes, self.estimate(model), load_s))

    def refused(self, model: Model) -> MoveRefused | None:
        """Why it cannot be moved, whatever its configuration says; None if it can."""
        active, failed = model.active, model.sleep.failed_move
        if active is None or not active.is_offloadable() or not active.is_fully_ready():
            return MoveRefused.NOT_ABLE
        return MoveRefused.FAILED if failed is not None and failed.stamp == active.stamp else None

    def estimate(self, model: Model) -> MoveEstimate:
        """Of all its workers; they are ready."""
        active = model.active
        found = MoveEstimate(0, 0)
        for instance in active.instances() if active is not None else ():
            found = found.plus(self._model_set.memory.move_estimate(instance))
        return found
