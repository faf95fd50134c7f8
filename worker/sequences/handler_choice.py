"""What handles the requests of a model: by themselves, or as those of sequences."""

from __future__ import annotations

from mmsup.ipc.specs import ModelSpec
from mmsup.worker.sequences.sequence_handler import SequenceHandler
from mmsup.worker.serving.request_handler import RequestHandler


def handler_class(spec: ModelSpec) -> type[RequestHandler]:
    return RequestHandler if spec.sequences is None else SequenceHandler
