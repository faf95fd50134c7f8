"""Answers requests of a model that is decoupled, or whose `execute` is asynchronous: each is a call of its own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.calls.model_calls import ModelCalls
from mmsup.worker.engines.triton_python.api.model_calls import PATH
from mmsup.worker.engines.triton_python.api.request import InferenceRequest
from mmsup.worker.engines.triton_python.api.response import InferenceResponse
from mmsup.worker.engines.triton_python.api.response_sender import InferenceResponseSender
from mmsup.worker.engines.triton_python.decoupled_execution import DecoupledExecution
from mmsup.worker.engines.triton_python.decoupled_sender import DecoupledSender
from mmsup.worker.engines.triton_python.execute_thread import ExecuteThread
from mmsup.worker.engines.triton_python.returned_responses import Execute, checked_responses
from mmsup.worker.engines.triton_python.sent_responses import Answer, SentResponses
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import Responses
from mmsup.worker.execution.model_errors import ModelFailure, RequestRefused

MakeRequest = Callable[[Mapping[str, Array], Sequence[str], InferenceResponseSender], InferenceRequest]
Convert = Callable[[InferenceResponse, Sequence[str]], Answer]


class Responder:
    def __init__(
        self, execute: Execute, make_request: MakeRequest, convert: Convert, calls: ModelCalls, *, is_decoupled: bool
    ) -> None:
        """`convert`: a response to what the client gets, of the outputs that it wants."""
        self._execute = execute
        self._make_request = make_request
        self._convert = convert
        self._calls = calls
        self._is_decoupled = is_decoupled
        self._is_async = inspect.iscoroutinefunction(execute)
        self._thread = ExecuteThread()
        self._turn = asyncio.Lock()
        """One call at a time of an asynchronous `execute` that is not decoupled, as in Triton."""

    def respond(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Responses:
        """What is sent, one by one; or what awaits the one response."""
        if not self._is_decoupled:
            return self._respond_once(inputs, wanted)
        sent = SentResponses()
        sender = DecoupledSender(sent, lambda response: self._copied(response, wanted))
        request = self._make_request(inputs, wanted, sender)
        execution = DecoupledExecution(sent, lambda: self._execute([request]), self._calls)
        return execution.in_loop() if self._is_async else execution.in_thread(self._thread)

    def stop(self) -> None:
        """Wait for the call that runs in the thread."""
        self._thread.stop()

    async def _respond_once(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Arrays:
        sender = InferenceResponseSender()
        request = self._make_request(inputs, wanted, sender)
        async with self._turn:
            PATH.use(self._calls, asyncio.get_running_loop())
            try:
                returned = await self._execute([request])
                if returned is None and sender.is_taken:
                    await asyncio.to_thread(sender.wait)
                (response,) = checked_responses(returned, [sender])
            finally:
                sender.close()
        result = self._convert(response, wanted)
        if isinstance(result, ModelFailure):
            raise RequestRefused(result)
        return result

    def _copied(self, response: InferenceResponse, wanted: Sequence[str]) -> Answer:
        made = self._convert(response, wanted)
        return made if isinstance(made, ModelFailure) else {name: each.copy() for name, each in made.items()}
