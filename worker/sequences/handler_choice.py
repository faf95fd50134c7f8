"""Whether a model's requests belong to sequences, and what handles them then."""

from __future__ import annotations

from functools import partial

from mmsup.ipc.specs import ModelSpec
from mmsup.worker.sequences.sequence_handler import SequenceHandler
from mmsup.worker.serving.loop import MakeHandler


def handler_maker(spec: ModelSpec) -> MakeHandler | None:
    """None for a model whose requests are independent of each other."""
    return None if spec.sequences is None else partial(SequenceHandler, batching=spec.sequences)
