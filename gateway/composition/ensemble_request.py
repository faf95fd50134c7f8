"""A request to an ensemble, in the place of one that is sent to a worker: with its body in the gateway's own memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mmsup.gateway.composition.ensemble_run import EnsembleRun, RunsStep
from mmsup.gateway.composition.inference import AskedInference, AskedTensor
from mmsup.gateway.composition.invocation import Invocation
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.in_flight import RequestEvent
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult
from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import InferReply
from mmsup.ipc.messages.gateway_control import VersionState

if TYPE_CHECKING:
    from mmsup.gateway.composition.composer import Composer
    from mmsup.gateway.dispatch.router import Router


class EnsembleRequest(DispatchedRequest):
    """Admitted already. It is never sent, so `in_flight` stays None and `link` is not set."""

    __slots__ = ("_composer", "_ends", "invocation")

    def __init__(self, router: Router, composer: Composer, state: VersionState, version: str, deadline_ns: int) -> None:
        assert state.spec is not None, "an ensemble has a configuration"
        assert state.metadata is not None, "an ensemble declares its tensors"
        self._router = router
        self._composer = composer
        self._requested_version = version
        self.buffer = memoryview(b"")
        self.in_flight = None
        self.request_id = ""
        self.reserved_bytes = 0
        self.deadline_ns = deadline_ns
        self.client_deadline_ns = 0
        self.spec = state.spec
        self.metadata = state.metadata
        self.invocation: Invocation | None = None
        self._ends: EnsembleRun | None = None

    def close(self) -> None:
        ended, self._ends = self._ends, None
        if ended is not None:
            self._composer.close_later(ended)
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
        routes = self._composer.routes
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
        asked = AskedInference(self._requested_version, inputs, outputs, job.parameters, self._limit_ns())
        asked.priority, asked.client_id = job.priority, self.request_id
        invocation = self.invocation or Invocation((self.spec.name,), None)
        runner: RunsStep = self._composer
        self._ends = run = EnsembleRun(self.spec.steps, runner, invocation, asked)
        made = await run.run()
        reply = InferReply(0, infer_ns=time.monotonic_ns() - began_ns)
        return InferenceResult(made, reply)
