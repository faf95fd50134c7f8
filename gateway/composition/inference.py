"""One inference that another one has asked for, from its tensors to its outputs: as a request of a client, but that its
tensors are in memory already, and its outputs go on from there.

Its inputs are copied from where they are, mostly the arena of another worker, into the arena of its own: no worker maps
what another one may write to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from mmsup.gateway.composition.invocation import Invocation, Invocations
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import request_body
from mmsup.gateway.infer import handler
from mmsup.gateway.infer.handler import InferHandler, ParsedRequest
from mmsup.gateway.observability.request_counters import RequestTimer
from mmsup.gateway.protocol import infer_request, infer_response
from mmsup.gateway.protocol.binary_tensors import Blobs
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.gateway.waking.request_wait import RequestWait
from mmsup.ipc.messages.gateway_control import VersionState
from mmsup.ipc.specs import ENSEMBLE, Metadata

COST: Final = 2
"""In the fair queue: as a request over gRPC."""


@dataclass(slots=True)
class AskedTensor:
    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes | memoryview


@dataclass(slots=True)
class AskedInference:
    """What is to run. The data of `inputs` is read before `on_read` is called, and not afterwards."""

    version: str
    inputs: list[AskedTensor]
    outputs: Sequence[str]
    """Names; empty: all."""
    parameters: dict[str, Any]  # scalars
    deadline_ns: int
    """CLOCK_MONOTONIC, which nothing puts off; 0: that of the model alone."""
    priority: int = 0
    client_id: str = ""
    on_read: Callable[[], None] = field(default=lambda: None)

    def document(self) -> dict[str, Any]:  # a JSON object
        """As the request of a client would have it."""
        priority = {"priority": self.priority} if self.priority else {}
        inputs = [
            {
                "name": each.name,
                "datatype": each.datatype,
                "shape": list(each.shape),
                "parameters": {"binary_data_size": len(each.data)},
            }
            for each in self.inputs
        ]
        return {
            "id": self.client_id,
            "parameters": {**priority, **self.parameters, "binary_data_output": True},
            "inputs": inputs,
            "outputs": [{"name": each} for each in self.outputs],
        }


class ComposedRequest(DispatchedRequest):
    """A request whose worker is none that waits for it."""

    __slots__ = ("_choose",)

    def __init__(self, router: Router, request: tuple[Any, str], wait: RequestWait) -> None:
        """`request`: its link and the version that was asked for."""
        super().__init__(router, *request, wait.deadline_ns)
        self.client_deadline_ns = wait.client_deadline_ns
        self._choose = wait.choose

    async def acquire_next_link(self, priority: int = 0) -> None:
        wait = RequestWait(self.deadline_ns, self.client_deadline_ns, priority, choose=self._choose)
        self.link = link = await self._router.acquire(self.spec.name, self.requested_version, wait)
        link.reserved_requests += 1
        self.spec, self.metadata, self.deadline_ns = link.spec, link.metadata, wait.deadline_ns


class OpenEnsemble(Protocol):
    def __call__(
        self,
        state: VersionState,
        version: str,
        deadline_ns: int,
        client_deadline_ns: int,
        invocation: Invocation,
    ) -> DispatchedRequest:
        """Admit a request to a version that is an ensemble."""
        ...


class ModelInference:
    """Runs inferences. One per gateway."""

    def __init__(self, inference: InferHandler, invocations: Invocations, open_ensemble: OpenEnsemble) -> None:
        self.inference = inference
        self.invocations = invocations
        self._open_ensemble = open_ensemble

    @asynccontextmanager
    async def run(self, asked: AskedInference, invocation: Invocation) -> AsyncIterator[list[OutputTensor]]:
        """The outputs, valid within the context; MmsupError if there are none."""
        inference, model = self.inference, invocation.model
        timer = RequestTimer(inference.counters, model, asked.version)
        try:
            await inference.fair_queue.wait_to_start(model, COST)
            with closing(await self._open(asked, invocation)) as dispatched:
                if isinstance(dispatched, ComposedRequest):
                    invocation.request = dispatched
                timer.version = dispatched.spec.version
                dispatched.request_id = asked.client_id
                parsed = await self._read(asked, dispatched)
                handler.apply_timeout(dispatched, parsed, timer)
                result = await inference.infer(dispatched, parsed, None)
                context = handler.response_context(dispatched, parsed)
                outputs = infer_response.wanted_tensors(context, parsed.request.outputs, result.outputs)
                timer.finish(result.reply, parsed.inference_count)
                yield outputs
        except BaseException as error:
            timer.fail(error)
            raise

    async def _open(self, asked: AskedInference, invocation: Invocation) -> DispatchedRequest:
        router, model = self.inference.router, invocation.model
        state = router.routes.version(model, asked.version)
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + int((state.spec.deadline_s if state.spec is not None else 60.0) * 1e9)
        if asked.deadline_ns:
            deadline_ns = min(deadline_ns, asked.deadline_ns)
        if state.spec is not None and state.spec.engine == ENSEMBLE:
            return self._open_ensemble(state, asked.version, deadline_ns, asked.deadline_ns, invocation)
        choose = partial(self.invocations.choose, invocation)
        wait = RequestWait(deadline_ns, asked.deadline_ns, asked.priority, choose=choose)
        router.admission.admit(model, state.spec)
        try:
            link = await router.acquire(model, asked.version, wait)
        except BaseException:
            router.admission.leave(model, 0)
            raise
        return ComposedRequest(router, (link, asked.version), wait)

    async def _read(self, asked: AskedInference, dispatched: DispatchedRequest) -> ParsedRequest:
        """Copy the inputs to where the model reads them, and check them there."""
        size = sum(len(each.data) for each in asked.inputs)
        buffer = await dispatched.allocate(size)
        at = 0
        for each in asked.inputs:
            await request_body.copy_in_steps(each.data, buffer[at : at + len(each.data)])
            at += len(each.data)
        asked.on_read()
        document, metadata = asked.document(), dispatched.metadata
        parse = partial(_parse, document, dispatched.spec.name, metadata, buffer, size)
        has_strings = any(each.datatype == "BYTES" for each in asked.inputs)
        if has_strings and size > request_body.THREAD_PARSE_BYTES:
            return await asyncio.get_running_loop().run_in_executor(self.inference.parser_executor, parse)
        return parse()


def _parse(
    document: dict[str, Any],  # a JSON object
    model: str,
    metadata: Metadata,
    buffer: memoryview,
    size: int,
) -> ParsedRequest:
    blobs = Blobs(buffer, 0, size)
    return ParsedRequest(infer_request.parse_request(document, model, metadata, blobs), metadata)
