"""Answers requests of models with a response cache from it, and keeps what they were answered by their workers.

Only results are kept: no error, nothing of a sequence, of a stream or of tensors in memory of clients. A request is
looked up when it has been admitted and checked like any other, so a model that does not serve is not answered for.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from typing import Final

from mmsup.gateway.caching.cache_key import cache_key
from mmsup.gateway.caching.response_cache import CachedOutput, ResponseCache
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult, OutputTensor
from mmsup.gateway.protocol.request_fingerprint import total_bytes
from mmsup.ipc.messages.data import InferReply
from mmsup.ipc.paths import WorkerId

OFF_LOOP_BYTES: Final = 256 << 10
"""Inputs from this size on are read in another thread."""


class CachedInference:
    """One per gateway process. `executor`: one thread."""

    def __init__(self, router: Router, counters: RequestCounters, executor: Executor) -> None:
        self._router = router
        self._counters = counters
        self._executor = executor
        self.cache = ResponseCache(router.configuration.cache_bytes)

    async def infer(self, request: DispatchedRequest, job: InferenceJob) -> InferenceResult:
        """The result, or the MmsupError that says whose fault it was."""
        if not self.cache.limit_bytes:
            return await request.resume(job)
        began_ns = time.monotonic_ns()
        workers = self._workers(request)
        key = await self._key(request, job, workers)
        found = self.cache.get(key)
        took_ns = time.monotonic_ns() - began_ns
        if found is not None:
            return _result(found, took_ns)
        counters = self._counters.version_counters(request.spec.name, request.spec.version)
        result = await request.resume(job)
        began_ns = time.monotonic_ns()
        if request.link.worker_id in workers and self._workers(request) == workers:
            self.cache.put(key, result.outputs)
        counters.record_cache_miss(took_ns + time.monotonic_ns() - began_ns)
        return result

    def _workers(self, request: DispatchedRequest) -> list[WorkerId]:
        """Those that serve the version now."""
        links = self._router.links.serving.get((request.spec.name, request.spec.version), ())
        return [each.worker_id for each in links]

    async def _key(self, request: DispatchedRequest, job: InferenceJob, workers: list[WorkerId]) -> bytes:
        inputs = request.input_tensors(job)
        arguments = (request.spec.name, request.spec.version), workers, inputs, job.outputs, job.parameters
        if total_bytes(inputs) < OFF_LOOP_BYTES:
            return cache_key(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, cache_key, *arguments)


def _result(found: tuple[CachedOutput, ...], took_ns: int) -> InferenceResult:
    """`batch` 0 says that no batch was run."""
    outputs = [OutputTensor(each.name, each.datatype, each.shape, memoryview(each.data)) for each in found]
    return InferenceResult(outputs, InferReply(0, queue_ns=took_ns, batch=0, rows=0))
