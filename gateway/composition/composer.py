"""Runs whatever an inference asks for: a model that has workers, or an ensemble of such."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mmsup.gateway.composition.inference import AskedInference, ModelInference
from mmsup.gateway.composition.invocation import Invocation, Invocations
from mmsup.gateway.http import request_body
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.protocol.inference_job import OutputTensor


class Composer:
    """One per gateway."""

    def __init__(self, inference: InferHandler) -> None:
        self.invocations = Invocations()
        self._router = inference.router
        self._models = ModelInference(inference, self.invocations)
        self.copy = request_body.copy_in_steps

    @property
    def max_body_bytes(self) -> int:
        return self._router.configuration.max_body_bytes

    @asynccontextmanager
    async def run(self, asked: AskedInference, invocation: Invocation) -> AsyncIterator[list[OutputTensor]]:
        """The outputs, valid within the context; MmsupError if there are none."""
        self.invocations.enter(invocation)
        try:
            async with self._models.run(asked, invocation) as outputs:
                yield outputs
        finally:
            self.invocations.leave(invocation)
