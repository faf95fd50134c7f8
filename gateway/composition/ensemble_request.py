"""A request to an ensemble, in the place of one that is sent to a worker: with its body in the gateway's own memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from mmsup.gateway.composition.ensemble_run import EnsembleRun, RunsStep
from mmsup.gateway.composition.inference import AskedInference, AskedTensor
from mmsup.gateway.composition.invocation import Invocation
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.in_flight import RequestEvent
from mmsup.gateway.dispatch.route_table import RouteTable
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult
from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import InferReply
from mmsup.ipc.messages.gateway_control import VersionState


class StepRunner(RunsStep, Protocol):
    @property
    def routes(self) -> RouteTable: ...

    def close_later(self, run: EnsembleRun) -> None:
        """Free what it holds, soon."""
        ...


@dataclass(slots=True)
class EnsemblePlan:
    composer: StepRunner
    invocation: Invocation
    """Also of an ensemble that a client asks for."""
    run: EnsembleRun | None = None
    """Set when the steps have been started: it holds what they have made."""


class EnsembleRequest(DispatchedRequest):
    """Admitted already. It is never sent, so `in_flight` stays None and `link` is not set."""

    __slots__ = ("plan",)

    def __init__(
        self, router: Router, composer: StepRunner, state: VersionState, version: str, deadline_ns: int
    ) -> None:
        assert state.spec is not None, "an ensemble has a configuration"
        assert state.metadata is not None, "an ensemble declares its tensors"
        self._router = router
        self.requested_version = version
        self.buffer = memoryview(b"")
        self.in_flight = None
        self.request_id = ""
        self.reserved_bytes = 0
        self.deadline_ns = deadline_ns
        self.client_deadline_ns = 0
        self.spec = state.spec
        self.metadata = state.metadata
        self.plan = EnsemblePlan(composer, Invocation((state.spec.name,), None))

    def close(self) -> None:
        plan = self.plan
        if plan.run is not None:
            plan.composer.close_later(plan.run)
            plan.run = None
        self.buffer = memoryview(b"")
        self._router.admission.leave(self.spec.name, self.reserved_bytes)

    def try_allocate(self, size: int) -> memoryview | None:
        if size > self.reserved_bytes:
            self.reserve_bytes(size - self.reserved_bytes)
        self.buffer = memoryview(bytearray(size))
        return self.buffer

    async def allocate(self, size: int) -> memoryview:
        buffer = self.try_allocate(size)
        assert buffer is not None, "memory of our own is there or is refused"
        return buffer

    async def allocate_slot(self, size: int) -> Slot:
        raise AssertionError(f"an ensemble has no arena for {size} bytes")

    def _limit_ns(self) -> int:
        """By when all steps have to be done: the ensemble's own deadline does not run while a step is loaded from
        sleep, as that of any model; then each step has its own. 0: so it is."""
        routes = self.plan.composer.routes
        if not self.client_deadline_ns and any(routes.is_asleep(each.model) for each in self.spec.steps):
            return 0
        return self.deadline_ns

    async def resume(self, job: InferenceJob, event: RequestEvent | None = None) -> InferenceResult:
        del event  # nothing was sent
        began_ns, buffer = time.monotonic_ns(), self.buffer
        assert isinstance(buffer, memoryview), "the body is in memory of our own"
        inputs = [
            AskedTensor(
                each.name,
                each.datatype,
                each.shape,
                each.data if each.data is not None else buffer[each.offset : each.offset + each.size],
            )
            for each in job.inputs
        ]
        outputs = list(job.outputs) or [each.name for each in self.metadata.outputs]
        asked = AskedInference(self.requested_version, inputs, outputs, job.parameters, self._limit_ns())
        asked.priority, asked.client_id = job.priority, self.request_id
        plan = self.plan
        plan.run = run = EnsembleRun(self.spec.steps, plan.composer, plan.invocation, asked)
        made = await run.run()
        reply = InferReply(0, infer_ns=time.monotonic_ns() - began_ns)
        return InferenceResult(made, reply)
