"""Runs whatever an inference asks for: a model that has workers, or an ensemble of such."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from mmsup.gateway.composition.ensemble_request import EnsembleRequest
from mmsup.gateway.composition.ensemble_run import EnsembleRun
from mmsup.gateway.composition.inference import AskedInference, ModelInference
from mmsup.gateway.composition.invocation import Invocation, Invocations
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.route_table import RouteTable
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import request_body
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.ipc.messages.gateway_control import VersionState


class Composer:
    """One per gateway."""

    def __init__(self, inference: InferHandler) -> None:
        self.invocations = Invocations()
        self._router: Router = inference.router
        self._models = ModelInference(inference, self.invocations, self.open_ensemble)
        self._closing: set[asyncio.Task[None]] = set()
        self.copy = request_body.copy_in_steps

    @property
    def routes(self) -> RouteTable:
        return self._router.routes

    @property
    def max_body_bytes(self) -> int:
        return self._router.configuration.max_body_bytes

    def open_ensemble(
        self,
        state: VersionState,
        version: str,
        deadline_ns: int,
        client_deadline_ns: int = 0,
        invocation: Invocation | None = None,
    ) -> DispatchedRequest:
        """Admit a request to a version that is an ensemble; MmsupError if it cannot be served. `invocation`: if another
        inference asks for it."""
        assert state.spec is not None, "an ensemble has a configuration"
        self._router.admission.admit(state.spec.name, state.spec)
        request = EnsembleRequest(self._router, self, state, version, deadline_ns)
        request.client_deadline_ns = client_deadline_ns
        if invocation is not None:
            request.plan.invocation = invocation
        return request

    @asynccontextmanager
    async def run(self, asked: AskedInference, invocation: Invocation) -> AsyncIterator[list[OutputTensor]]:
        """The outputs, valid within the context; MmsupError if there are none."""
        self.invocations.enter(invocation)
        try:
            async with self._models.run(asked, invocation) as outputs:
                yield outputs
        finally:
            self.invocations.leave(invocation)

    async def enter(self, stack: AsyncExitStack, asked: AskedInference, invocation: Invocation) -> list[OutputTensor]:
        """The same, until the stack is closed."""
        return await stack.enter_async_context(self.run(asked, invocation))

    def close_later(self, run: EnsembleRun) -> None:
        """Free what a run holds, which takes no time but cannot be done at once."""
        task = asyncio.get_running_loop().create_task(run.close(), name="end of an ensemble")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
