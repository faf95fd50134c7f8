"""One client's request while it is with us: its bytes, its place at a worker, exactly one outcome.

Who calls: the HTTP handlers, as `async with await backend.open(...) as exchange`. Leaving the block frees what is ours
and, if there is no outcome yet, tells the worker to forget the request.

A request that had not begun to execute when its worker ended goes to the next one, from the same bytes, unseen by the
client. One that had begun is answered with the verdict, or run once more where the model allows it (never after an
out-of-memory: it would kill the next one too).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from mmsup.gateway.ledger import Entry, LifeEnded
from mmsup.gateway.link import Link
from mmsup.gateway.sizes import seen_bytes
from mmsup.ipc.arena import Slot, SlotState
from mmsup.ipc.errors import ServerError, WorkerError, error_of
from mmsup.ipc.messages import Infer, Reply, Tensor
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, Metadata, ModelSpec

if TYPE_CHECKING:
    from mmsup.gateway.backend import Backend

_RETRIED_CODES: Final = frozenset({"worker_crashed", "worker_sigbus", "gpu_fault"})
GRANTS_LIMIT: Final = 2
"""A worker that still asks after this many larger grants is not honest about its sizes."""


@dataclass(frozen=True, slots=True)
class Given:
    """One input: `size` bytes at `offset` of `Exchange.space`, or `data` of its own."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int = -1
    size: int = 0
    data: bytes | memoryview | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """One output; `data` is valid until the exchange is left."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one request; times in nanoseconds, `batch` is how many requests ran together."""

    outputs: list[Made]
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    batch: int


class Exchange:
    """One request. Made by `Backend.open` when a link was found."""

    def __init__(self, backend: Backend, link: Link, version: str, deadline_ns: int) -> None:
        self._backend = backend
        self._link = link
        self._asked_version = version
        self._space: Slot | memoryview = memoryview(b"")
        self._entry: Entry | None = None
        self._retried = False
        self.taken_bytes = 0
        """Counted against the model's `max_queue_bytes`."""
        self.deadline_ns = deadline_ns
        """CLOCK_MONOTONIC. The caller may bring it forward (a `timeout` in the request), never put it off."""

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.spec.name

    @property
    def version(self) -> str:
        """The version that serves it."""
        return self.spec.version

    @property
    def spec(self) -> ModelSpec:
        """How the model is configured."""
        return self._link.said.spec

    @property
    def metadata(self) -> Metadata:
        """Its inputs and outputs."""
        return self._link.said.metadata

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entry is not None:
            self._leave(self._entry)
        elif isinstance(self._space, Slot) and self._space.state is SlotState.FILLING:
            self._link.arena.requests.free(self._space)
        self._backend.closed(self)

    def _leave(self, entry: Entry) -> None:
        if self._link.ledger.get(entry.request.id) is entry:
            self._link.abandon(entry)
        elif entry.out is not None and entry.out.state is SlotState.DRAINING:
            self._link.arena.results.free(entry.out)

    # The bytes of the request.

    async def space(self, size: int) -> memoryview:
        """Where `size` bytes of the body go: memory shared with the worker, or our own if they are few. Once."""
        self._backend.take_bytes(self, size)
        if size <= INLINE_LIMIT_BYTES:
            self._space = memoryview(bytearray(size))
            return self._space
        self._space = await self._hold(size)
        return self._space.view

    async def _hold(self, size: int) -> Slot:
        """A slot at the present link, or at the next one if this life ends meanwhile."""
        while True:
            link = self._link
            try:
                return await link.arena.slot(link.arena.requests, size)
            except ServerError:
                if not link.ended:
                    raise
                await self._next_link()

    async def _next_link(self) -> None:
        self._link = await self._backend.acquire(self.model, self._asked_version, self.deadline_ns)

    # The run.

    async def infer(
        self,
        inputs: Sequence[Given],
        outputs: Sequence[str],
        parameters: dict[str, Any],  # scalars, checked by the caller
    ) -> Outcome:
        """Run the model on these inputs; the outcome, or the MmsupError that says whose fault it was."""
        while True:
            try:
                if self._link.ended:
                    await self._move()
                return await self._run(inputs, outputs, parameters)
            except LifeEnded as end:
                if end.begun:
                    await self._judge(alone=end.alone)

    async def _judge(self, *, alone: bool) -> None:
        """The worker ended with this request in it: raise the verdict, or return to run it once more."""
        error = await self._backend.verdict(self._link)
        if error.code == "worker_oom" and alone:
            error.retryable = False  # it was this request that needed the memory
        if self._retried or not self.spec.retry_on_crash or error.code not in _RETRIED_CODES:
            raise error
        self._retried = True

    async def _move(self) -> None:
        """To the next life: its arena has none of our bytes; the old mapping, which lives as long as we look, has."""
        old = self._space
        self._entry = None
        await self._next_link()
        if isinstance(old, Slot):
            self._space = await self._hold(old.size)
            self._space.view[:] = old.view

    async def _run(
        self,
        inputs: Sequence[Given],
        outputs: Sequence[str],
        parameters: dict[str, Any],  # as in `infer`
    ) -> Outcome:
        link = self._link
        copies: list[Slot] = []
        try:
            tensors = [await self._tensor(link, each, copies) for each in inputs]
            out = await self._room(link, inputs, outputs)
        except BaseException as error:
            for slot in copies:
                link.arena.requests.free(slot)
            if isinstance(error, ServerError) and link.ended:
                raise LifeEnded(begun=False) from None
            raise
        if link.ended:  # while we waited for memory; all of it went with the life
            raise LifeEnded(begun=False)
        segment, offset, size = (out.segment, out.offset, out.size) if out else (-1, 0, 0)
        request = Infer(
            link.ledger.next_id(), tuple(tensors), tuple(outputs), segment, offset, size, self.deadline_ns, parameters
        )
        held = [*copies, self._space] if isinstance(self._space, Slot) else copies
        for slot in held:
            slot.move(SlotState.SENT)
        entry = self._entry = Entry(request, held, asyncio.get_running_loop().create_future(), out)
        link.submit(entry)
        reply = await self._answer(link, entry)
        while reply.need:
            await self._grant_more(link, entry, reply.need)
            reply = await self._answer(link, entry)
        return self._outcome(entry, reply)

    async def _tensor(self, link: Link, given: Given, copies: list[Slot]) -> Tensor:
        if given.data is None:
            if not isinstance(self._space, Slot):
                data = self._space[given.offset : given.offset + given.size]
                return Tensor(given.name, given.datatype, given.shape, -1, 0, given.size, data)
            at = self._space.offset + given.offset
            return Tensor(given.name, given.datatype, given.shape, self._space.segment, at, given.size)
        size = len(given.data)
        if size <= INLINE_LIMIT_BYTES:
            return Tensor(given.name, given.datatype, given.shape, -1, 0, size, given.data)
        slot = await link.arena.slot(link.arena.requests, size)
        copies.append(slot)
        slot.view[:] = given.data
        return Tensor(given.name, given.datatype, given.shape, slot.segment, slot.offset, size)

    async def _room(self, link: Link, inputs: Sequence[Given], outputs: Sequence[str]) -> Slot | None:
        batch = inputs[0].shape[0] if inputs and inputs[0].shape else 1
        expected = self._backend.learned.expected((self.model, self.version), self.metadata, outputs, batch)
        return await link.arena.slot(link.arena.results, expected) if expected else None

    async def _answer(self, link: Link, entry: Entry) -> Reply:
        left_s = (self.deadline_ns - time.monotonic_ns()) / 1e9
        try:
            async with asyncio.timeout(max(left_s, 0)):
                return await entry.answer
        except TimeoutError:
            link.abandon(entry)
            text = f"Request timeout expired: model '{self.model}' did not answer in time"
            raise ServerError("deadline_exceeded", text, model=self.model) from None

    async def _grant_more(self, link: Link, entry: Entry, need: int) -> None:
        try:
            if entry.asked_again >= GRANTS_LIMIT:
                text = f"model '{self.model}' asked again and again for a larger result buffer"
                raise WorkerError("bad_worker_reply", text, model=self.model)
            self._backend.learned.note((self.model, self.version), need)
            slot = await link.arena.slot(link.arena.results, need)
        except BaseException as error:
            link.abandon(entry)
            if isinstance(error, ServerError) and link.ended:
                raise LifeEnded(begun=True) from None
            raise
        if link.ended:
            raise LifeEnded(begun=True)
        link.grant(entry, slot)

    def _outcome(self, entry: Entry, reply: Reply) -> Outcome:
        if reply.code:
            raise error_of(reply.code, reply.text, model=self.model)
        self._backend.learned.note((self.model, self.version), seen_bytes(reply.outputs))
        made = [Made(each.name, each.datatype, each.shape, _bytes_of(entry, each)) for each in reply.outputs]
        return Outcome(made, reply.queue_ns, reply.input_ns, reply.infer_ns, reply.output_ns, reply.batch)


def _bytes_of(entry: Entry, tensor: Tensor) -> memoryview:
    if tensor.data is not None:
        return memoryview(tensor.data)
    assert entry.out is not None, "distrust.py lets no other reply through"
    start = tensor.offset - entry.out.offset
    return entry.out.view[start : start + tensor.size]
