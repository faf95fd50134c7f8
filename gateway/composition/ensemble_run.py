"""One run of an ensemble: each step starts as soon as its inputs are there, steps that need nothing of each other run
side by side, and what a step has made is freed when nobody needs it any more.

A tensor stays where it was made, in the memory that its worker shares with the gateway, until the last step that takes
it has it; each of them gets a copy in the arena of its own worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from mmsup.gateway.composition.inference import AskedInference, AskedTensor
from mmsup.gateway.composition.invocation import Invocation
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.ipc.errors import CallerError, MmsupError, ServerError, make_error
from mmsup.ipc.specs import EnsembleStep, needed_steps, startable


class RunsStep(Protocol):
    async def enter(self, stack: AsyncExitStack, asked: AskedInference, invocation: Invocation) -> list[OutputTensor]:
        """Run a model; its outputs are valid until the stack is closed."""
        ...


@dataclass(slots=True)
class HeldTensor:
    tensor: AskedTensor
    maker: int
    """The step that has made it; -1: it came with the request."""


class EnsembleRun:
    def __init__(
        self, steps: Sequence[EnsembleStep], runner: RunsStep, invocation: Invocation, asked: AskedInference
    ) -> None:
        """`asked`: the inference of the ensemble, with names of outputs."""
        self._steps = steps
        self._runner = runner
        self._invocation = invocation
        self._asked = asked
        self._needed = needed_steps(steps, asked.outputs)
        self._tensors = {each.name: HeldTensor(each, -1) for each in asked.inputs}
        self._started: set[int] = set()
        self._stacks: dict[int, AsyncExitStack] = {}
        """Of steps that have run: they hold their outputs."""

    async def run(self) -> list[OutputTensor]:
        """The outputs that were asked for, valid until `close`; MmsupError of the first step that fails."""
        running: dict[asyncio.Task[None], int] = {}
        try:
            self._start(running)
            while running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    task.result()
                self._start(running)
                await self._free(set(running.values()))
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return [self._output(name) for name in self._asked.outputs]

    async def close(self) -> None:
        while self._stacks:
            await self._stacks.popitem()[1].aclose()

    def _start(self, running: dict[asyncio.Task[None], int]) -> None:
        for at in startable(self._steps, self._started, self._tensors):
            self._started.add(at)
            if at in self._needed:
                name = f"step {self._steps[at].model}"
                running[asyncio.get_running_loop().create_task(self._run_step(at), name=name)] = at

    async def _run_step(self, at: int) -> None:
        step = self._steps[at]
        inputs = [
            AskedTensor(own, tensor.datatype, tensor.shape, tensor.data)
            for own, name in step.input_map.items()
            for tensor in [self._tensors[name].tensor]
        ]
        whole = self._asked
        asked = AskedInference(step.version, inputs, list(step.output_map), whole.parameters, whole.deadline_ns)
        asked.priority, asked.client_id = whole.priority, whole.client_id
        stack = self._stacks[at] = AsyncExitStack()
        try:
            made = await self._runner.enter(stack, asked, self._invocation.step(step.model))
        except MmsupError as error:
            raise step_error(self._invocation.model, step.model, error) from error
        for each in made:
            name = step.output_map[each.name]
            self._tensors[name] = HeldTensor(AskedTensor(name, each.datatype, each.shape, each.data), at)

    async def _free(self, running: set[int]) -> None:
        """Close the steps of whose outputs nothing is needed any more."""
        open_steps = [step for at, step in enumerate(self._steps) if at in self._needed - self._started | running]
        needed = {name for step in open_steps for name in step.input_map.values()} | {*self._asked.outputs}
        for at in self._stacks.keys() - running:
            if needed.isdisjoint(self._steps[at].output_map.values()):
                stack = self._stacks.pop(at)
                for name in self._steps[at].output_map.values():
                    self._tensors.pop(name, None)
                await stack.aclose()

    def _output(self, name: str) -> OutputTensor:
        held = self._tensors.get(name)
        if held is None:
            text = f"output '{name}' of ensemble '{self._invocation.model}' was not made"
            raise ServerError("internal", text, model=self._invocation.model)
        tensor = held.tensor
        return OutputTensor(name, tensor.datatype, tuple(tensor.shape), memoryview(tensor.data))


def step_error(ensemble: str, step: str, error: MmsupError) -> MmsupError:
    """The error of a step, as clients of the ensemble get it. A step that gets tensors which it cannot take is no fault
    of the client: it has checked what the ensemble declares."""
    code = error.code
    if isinstance(error, CallerError) and code not in ("too_large", "sequence_unknown"):
        code = "model_failed" if code in ("unknown_model", "unknown_version") else "inference_failed"
    text = f"in ensemble '{ensemble}', step '{step}': {error.text}"
    made = make_error(code, text, model=ensemble, retry_after_s=error.retry_after_s, retryable=error.retryable)
    made.operator_text = f"in ensemble '{ensemble}', step '{step}': {error.operator_text}"
    return made
