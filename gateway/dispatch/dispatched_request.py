"""One client's request while it is with us: its bytes, its place at a worker, exactly one outcome.

Who calls: the HTTP handlers, as `async with await backend.open(...) as exchange`, and the front, which never waits:
each step has a form that waits (`space`, `infer`) and one that does what can be done at once or says that it cannot
(`try_space`, `try_infer`, `outcome`). `leave` frees what is ours and, if there is no outcome yet, tells the worker to
forget the request.

A request that had not begun to execute when its worker ended goes to the next one, from the same bytes, unseen by the
client; not more than a few times. One that had begun is answered with the verdict, or run once more where the model
allows it (never after an out-of-memory: it would kill the next one too). One that was in the run that ended is run
alone from then on, whoever sends it; if that ends a worker too, it is refused (docs/decisions/007-poison.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final

from mmsup.gateway.dispatch.in_flight import Entry, LifeEnded, Said
from mmsup.gateway.dispatch.input_layout import copied_bytes, give_back, place_of
from mmsup.gateway.dispatch.poison_requests import ASIDE_BYTES, refusal
from mmsup.gateway.dispatch.reply_validation import Checked
from mmsup.gateway.dispatch.request_fingerprint import Tensor, fingerprint, size_bytes, tensors
from mmsup.gateway.dispatch.worker_link import Link
from mmsup.gateway.protocol.inference_job import Made, Outcome, Run
from mmsup.gateway.protocol.output_sizes import seen_bytes
from mmsup.ipc.errors import MmsupError, ServerError, WorkerError, error_of
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.data import Infer, Place, Reply
from mmsup.ipc.poison_policy import RERUN, Case
from mmsup.ipc.specs import INLINE_LIMIT_BYTES

if TYPE_CHECKING:
    from mmsup.gateway.dispatch.router import Backend

_RAN_CODES: Final = frozenset({"", "inference_failed"})
"""Of a final reply: it ran, and the worker is there to say so."""
_NOTHING: Final = memoryview(b"")
LIVES_LIMIT: Final = 3
"""What has been at so many workers when they ended is answered, whatever their pages say of it: a worker that wipes
its page would take every other one along."""
GRANTS_LIMIT: Final = 2
"""A worker that still asks after this many larger grants is not honest about its sizes."""


class Exchange:
    """One request. Made by `Backend.open` when a link was found."""

    __slots__ = (
        "_asked_version",
        "_backend",
        "_entry",
        "_failure",
        "_fingerprint",
        "_is_alone",
        "_link",
        "_lives",
        "_space",
        "deadline_ns",
        "metadata",
        "model",
        "request_id",
        "spec",
        "taken_bytes",
        "version",
    )

    def __init__(self, backend: Backend, link: Link, version: str, deadline_ns: int) -> None:
        self._backend = backend
        self._link = link
        link.claims += 1
        self._asked_version = version
        self._space: Slot | memoryview = _NOTHING
        self._entry: Entry | None = None
        self._failure: MmsupError | None = None
        """Why its run came to nothing, if one has."""
        self._fingerprint = b""
        """Taken only when its model has a list."""
        self._lives = 0
        """Workers that ended while it was there."""
        self._is_alone = False
        """It shares its run with nobody."""
        self.request_id = ""
        """The client's own id of it, if it gave one; for the record of a death."""
        self.taken_bytes = 0
        """Counted against the model's `max_queue_bytes`."""
        self.deadline_ns = deadline_ns
        """CLOCK_MONOTONIC. The caller may bring it forward (a `timeout` in the request), never put it off."""
        self.spec = link.spec
        """How the model is configured."""
        self.metadata = link.metadata
        """Its inputs and outputs."""
        self.model = link.spec.name
        self.version = link.spec.version
        """The version that serves it."""

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Nothing more is wanted of it, and no view of its memory is used any more. Once."""
        entry, space = self._entry, self._space
        if entry is None:
            self._link.claims -= 1
            if isinstance(space, Slot) and space.state is SlotState.FILLING:
                self._link.arena.requests.free(space)
        elif entry.request.id in self._link.ledger.entries:
            self._link.abandon(entry)
        elif entry.out is not None and entry.out.state is SlotState.DRAINING:
            self._link.arena.results.free(entry.out)
        # An error that was raised here knows its frames, and through us would keep the memory mapped.
        self._entry, self._space, self._failure = None, _NOTHING, None
        self._backend.closed(self.model, self.taken_bytes)

    # The bytes of the request.

    async def space(self, size: int) -> memoryview:
        """Where `size` bytes of the body go: memory shared with the worker, or our own if they are few. Once."""
        space = self.try_space(size)
        if space is None:
            self._space = await self._hold(size)
            space = self._space.view
        return space

    def take_bytes(self, size: int) -> None:
        """So many bytes of the body come to lie with us before there is `space` for them."""
        self._backend.take_bytes(self, size)

    def try_space(self, size: int) -> memoryview | None:
        """The same, or None if memory must be waited for: leave the exchange then, or ask `space`."""
        if size <= INLINE_LIMIT_BYTES:  # the bound on their number bounds these bytes too
            self._space = memoryview(bytearray(size))
            return self._space
        if size > self.taken_bytes:
            self._backend.take_bytes(self, size - self.taken_bytes)
        slot = self._link.arena.requests.allocate(size)
        if slot is None:
            return None
        self._space = slot
        return slot.view

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

    async def _next_link(self, priority: int = 0) -> None:
        self._link = link = await self._backend.acquire(self.model, self._asked_version, self.deadline_ns, priority)
        link.claims += 1
        self.spec, self.metadata, self.version = link.spec, link.metadata, link.spec.version
        self._fingerprint = b""

    # The run.

    async def infer(self, run: Run) -> Outcome:
        """Run the model; the outcome, or the MmsupError that says whose fault it was."""
        return await self.go_on(run, None)

    def try_infer(self, run: Run, hear: Callable[[Said], None]) -> bool:
        """Send the request if nothing must be waited for. Then `hear` is called once: with a reply, which `outcome`
        takes if it needs no larger grant; with anything else, which `go_on` takes."""
        link = self._link
        if not link.is_plain and self._must_wait(run):
            return False
        room = run.room
        expected = room[1] if room is not None and room[0] is self.metadata else None
        if expected is None:
            expected = self._expected(run)
        if not expected and type(self._space) is memoryview and run.lies:
            space = self._space
            places: list[Place] = [space[each.offset : each.offset + each.size] for each in run.inputs]
            self._submit(run, places, [], None, hear)
            return True
        return self._try_with_slots(run, expected, hear)

    def _must_wait(self, run: Run) -> bool:
        """Whether the link is over, or this request may be one that ends workers."""
        inputs = self._inputs(run)
        if self._link.ended or size_bytes(inputs) > ASIDE_BYTES:
            return True
        self._fingerprint = fingerprint(self.model, self.version, inputs)
        return self._backend.lists.find(self.model, self._fingerprint) is not None

    def _try_with_slots(self, run: Run, expected: int, hear: Callable[[Said], None]) -> bool:
        link = self._link
        out = link.arena.results.allocate(expected) if expected else None
        if expected and out is None:
            return False
        copies: list[Slot] = []
        places: list[Place] = []
        for each in run.inputs:
            size = copied_bytes(each)
            slot = link.arena.requests.allocate(size) if size else None
            if slot is not None:
                copies.append(slot)
            elif size:
                give_back(link.arena, copies, out)
                return False
            places.append(place_of(each, self._space, slot))
        self._submit(run, places, copies, out, hear)
        return True

    async def go_on(self, run: Run, said: Said | None) -> Outcome:
        """The rest of `try_infer` from what was heard, or all of it from None, waiting for what must be waited for."""
        while True:
            try:
                if said is None:
                    if self._link.ended:
                        await self._move(run.priority)
                    said = await self._run(run)
                while isinstance(said, Reply) and said.need:
                    said = await self._grant_more(said.need)
                if self._is_alone and isinstance(said, Reply) and said.code in _RAN_CODES:
                    self._backend.lists.lived(self.model, self._fingerprint)
                return self.outcome(said)
            except LifeEnded as end:
                said = None
                self._lives += self._entry is not None  # else it was still on its way
                is_judged = end.begun or self._lives >= LIVES_LIMIT
                if is_judged and not await self._judge(end, run):
                    assert self._failure is not None, "a request was judged and not told why"
                    raise self._failure from None

    async def _judge(self, end: LifeEnded, run: Run) -> bool:
        """The worker ended with this request in it, and `_failure` says why: whether it is run once more."""
        is_first = self._failure is None
        self._failure = error = await self._backend.verdict(self._link)
        if error.code == "worker_oom" and end.alone:
            error.retryable = False  # it was this request that needed the memory
        if end.running:
            await self._backend.lists.found(self._link)
            case = await self._case(run)
            if case is not None and case.blocked:
                error.retryable = False  # its second worker, and nothing else was in that run
                return False
        is_in_time = time.monotonic_ns() < self.deadline_ns
        return is_first and is_in_time and self.spec.retry_on_crash and error.code in RERUN

    async def _case(self, run: Run) -> Case | None:
        """What is known of this request, if anything is."""
        lists = self._backend.lists
        if not lists.has(self.model):
            return None
        if not self._fingerprint:
            self._fingerprint = await lists.fingerprint(self.model, self.version, self._inputs(run))
        return lists.find(self.model, self._fingerprint)

    def _inputs(self, run: Run) -> list[Tensor]:
        return tensors(run.inputs, self._space.view if isinstance(self._space, Slot) else self._space)

    async def _move(self, priority: int) -> None:
        """To the next life: its arena has none of our bytes; the old mapping, which lives as long as we look, has."""
        old = self._space
        self._entry = None
        try:
            await self._next_link(priority)
        except MmsupError:
            if self._failure is None:
                raise
            raise self._failure from None  # there is no next life in time: what it died of is what there is to say
        if isinstance(old, Slot):
            self._space = await self._hold(old.size)
            self._space.view[:] = old.view

    async def _run(self, run: Run) -> Said:
        """Send the request to the present link, and wait for what is said of it."""
        link = self._link
        case = await self._case(run)
        if case is not None and case.blocked:
            raise refusal(self.model, case)
        self._is_alone = case is not None
        copies: list[Slot] = []
        out: Slot | None = None
        try:
            places: list[Place] = []
            for each in run.inputs:
                size = copied_bytes(each)
                slot = await link.arena.slot(link.arena.requests, size) if size else None
                if slot is not None:
                    copies.append(slot)
                places.append(place_of(each, self._space, slot))
            is_guess = run.declared_bytes(link.metadata) is None
            out = await link.arena.room(self._expected(run), is_guess=is_guess)
        except BaseException as error:
            give_back(link.arena, copies, out)
            if isinstance(error, ServerError) and link.ended:
                raise LifeEnded(begun=False) from None
            raise
        if link.ended:  # while we waited for memory; all of it went with the life
            raise LifeEnded(begun=False)
        hear, answer = _future()
        self._submit(run, places, copies, out, hear)
        return await answer

    def _submit(
        self, run: Run, places: list[Place], copies: list[Slot], out: Slot | None, hear: Callable[[Said], None]
    ) -> None:
        link = self._link
        grant = (out.segment, out.offset, out.size) if out else None
        words = run.packed_alone() if self._is_alone else run.words or run.packed()
        request = Infer(link.ledger.next_id(), words, self.deadline_ns, grant, tuple(places))
        held = copies
        if type(self._space) is Slot:
            held.append(self._space)
        for slot in held:
            slot.move(SlotState.SENT)
        self._entry = entry = Entry(request, held, hear, out, self.request_id)
        link.claims -= 1
        link.submit(entry)

    def _expected(self, run: Run) -> int:
        """Room to grant for the results: what is declared, else the largest seen lately."""
        declared = run.declared_bytes(self._link.metadata)
        return self._backend.learned.largest((self.model, self.version)) if declared is None else declared

    async def _grant_more(self, need: int) -> Said:
        link, entry = self._link, self._entry
        assert entry is not None, "something was heard of a request that was not sent"
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
        entry.tell, answer = _future()
        link.grant(entry, slot)
        return await answer

    def outcome(self, said: Said) -> Outcome:
        """The result in a final reply; whatever else was heard is raised."""
        if not isinstance(said, Reply):
            try:
                raise said
            finally:
                del said  # the error holds this frame: if that held the error, both would stay, with all they know
        if said.code:
            raise error_of(said.code, said.text, model=self.model)
        entry = self._entry
        assert entry is not None, "a reply came for a request that was not sent"
        assert entry.said is not None, "a reply without words is no result"
        if entry.out is not None:
            self._backend.learned.note((self.model, self.version), seen_bytes(said.places))
        outputs = zip(entry.said.outputs, said.places, strict=True)
        made = [Made(each.name, each.datatype, each.shape, entry.bytes_of(place)) for each, place in outputs]
        return Outcome(made, said.queue_ns, said.input_ns, said.infer_ns, said.output_ns, said.batch)

    @property
    def said(self) -> Checked | None:
        """What the words of its result say, once that has come."""
        return self._entry.said if self._entry is not None else None


def _future() -> tuple[Callable[[Said], None], asyncio.Future[Said]]:
    """What an entry may tell, and where that can be awaited."""
    answer: asyncio.Future[Said] = asyncio.get_running_loop().create_future()

    def hear(said: Said) -> None:
        if not answer.done():  # its owner was cancelled
            answer.set_result(said)

    return hear, answer
