"""Times the gateway's stages: connection, router and worker link over a socket pair, with a transport that only counts.

Three stages of each iteration are timed: requests are accepted, their frame is sent, the frame of replies is received.
Parts of these are timed alone if they have no side effects.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from roster import BY_KEY, OURS
from work import SCENES, Scene

from inside.best import FEW, MANY, ONE, ROUNDS_PER_STAGE, BestTimes
from inside.kernel import Sizes
from mmsup.gateway.api.app import HttpApp
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.fast_connection import FastConnection
from mmsup.gateway.connections.listener import HttpListener
from mmsup.gateway.connections.message_boundary import BLANK
from mmsup.gateway.dispatch.link_memory import LinkMemory
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.http.response_bytes import head_end
from mmsup.gateway.infer import known_in_flight
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.infer.known_in_flight import PackedInFlight
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.protocol import json_template
from mmsup.ipc.memory.counters import CounterTable, make_counter_table
from mmsup.ipc.memory.status_page import make_status_page
from mmsup.ipc.messages.data import InferReply, ReplySignature
from mmsup.ipc.messages.gateway_control import ConfigureGateway, LinkWorker, Route, VersionState
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.transport.codec import (
    join_records,
    pack_frame,
    pack_signature,
    unpack_frame,
    unpack_records,
)
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES, DataChannel

MODEL = "scale0"
X, Y = TensorSpec("x", "FP32", (16,)), TensorSpec("y", "FP32", (16,))
BY_NAME = {scene.key: scene for scene in SCENES}
KINDS = {"binary": BY_NAME["small"], "json": BY_NAME["json"]}
TURNS_A_ROUND = {MANY: 60, FEW: 120, ONE: 400}
ORDINARY = "ordinary "
"""Before the stages of requests that are not recognised by their bytes."""
_WORDS = pack_signature(ReplySignature((Y,)))


class _Client(asyncio.Transport):
    """A transport that accepts everything."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0
        self.last = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answers += 1
        self.last = bytes(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


class _Unanswered(PackedInFlight):
    """A request in flight whose reply is not used."""

    @staticmethod
    def finish(replies: Sequence[Any]) -> None:
        pass


class InProcessGateway:
    """Needs a running event loop. Without known requests its stages are noted as those of ordinary ones."""

    def __init__(self, executor: ThreadPoolExecutor, *, use_known_requests: bool = True) -> None:
        self._prefix = "" if use_known_requests else ORDINARY
        self._backend = Router(
            ConfigureGateway(2, 0, 1, "mmsup", "0", 64 << 20, 64 << 20, 10.0, 4096, 1 << 30), executor
        )
        spec = ModelSpec(MODEL, "1", "/", "model.py", "custom", "python")
        metadata = Metadata("python", 0, (X,), (Y,))
        self._backend.routes.put(
            Route(MODEL, True, "1", (VersionState("1", "ready", "", "", 0.0, spec, metadata),))  # noqa: FBT003 - wanted
        )
        near, far = ControlChannel.pair()
        end, self._far = DataChannel(near.detach()), DataChannel(far.detach())
        arena = LinkMemory(end, self._backend.memory_quota, executor, self._backend.links.release_idle_memory)
        ours = os.pidfd_open(os.getpid())  # of a process that outlives the link
        self._link = WorkerLink(LinkWorker(1, 1, "", b"g", spec, metadata), end, arena, (ours, make_status_page()))
        self._backend.add_link(self._link)
        tally = make_counter_table()
        self._core = InferHandler(self._backend, RequestCounters([CounterTable(tally)], 0), executor)
        os.close(tally)
        self._core.fair_queue.limit = 1 << 30  # the rounds that would reset its counts are not run here
        self._shared = ConnectionContext(self._core, asyncio.get_running_loop(), use_known_requests=use_known_requests)
        self._listener = HttpListener(HttpApp(self._core, _no_controller).serve, is_local=True, context=self._shared)
        self._clients = [_Client() for _ in range(max(ROUNDS_PER_STAGE))]
        self._fronts = [FastConnection(self._shared, self._listener) for _ in self._clients]
        for front, client in zip(self._fronts, self._clients, strict=True):
            front.connection_made(client)
        self._out: dict[int, int] = {}
        self._back: dict[int, int] = {}
        self._sizes = 0, 0

    @property
    def sizes(self) -> Sizes:
        """Bytes sent in each direction."""
        return Sizes(*self._sizes, self._out, self._back)

    async def round(self, best: BestTimes) -> None:
        """Some iterations of each kind, and the parts."""
        for kind in reversed(KINDS):
            request = request_of(KINDS[kind])
            for count in ROUNDS_PER_STAGE:
                for _ in range(TURNS_A_ROUND[count]):
                    self._exchange(best, kind, request, count)
                    await asyncio.sleep(0)  # the pending flush then has nothing to do
            self._sizes = len(request), len(self._clients[0].last)
            self._parts(best, kind, request)
            await asyncio.sleep(0)

    def _exchange(self, best: BestTimes, kind: str, request: bytes, count: int) -> None:
        size, fronts = len(request), self._fronts[:count]
        before = self._clients[0].answers
        self._shared.fair_queue.started.clear()  # an iteration here has as many requests as the queue starts at a time
        begin = time.perf_counter()
        for front in fronts:
            front.get_buffer(-1)[:size] = request
            front.buffer_updated(size)
        taken = time.perf_counter()
        self._link.channel._flush()
        sent = time.perf_counter()
        frame = self._answer(count)
        answered = time.perf_counter()
        while self._link.in_flight.requests:
            self._link.channel._on_readable()
        end = time.perf_counter()
        assert self._clients[0].answers == before + 1, "a request was not answered in its turn"
        best.note(f"{self._prefix}{kind} take", count, taken - begin)
        best.note(f"{self._prefix}{kind} send", count, sent - taken)
        best.note(f"{self._prefix}{kind} wake", count, end - answered)
        if kind == "binary":
            self._back[count] = len(frame)

    def _answer(self, count: int) -> bytes:
        """Answer as a worker would."""
        received = self._far.receive()
        assert received is not None, "no frame came"
        self._out[count] = len(received)
        frame = pack_frame([reply_to(each.id) for each in unpack_frame(received)])
        assert self._far.send(frame), "the pair is full"
        return frame

    def _parts(self, best: BestTimes, kind: str, request: bytes) -> None:
        """Time each part alone; one with a side effect together with its reversal."""
        if self._prefix:
            return
        if kind == "json":
            self._time_json(best, request)
            return
        shared, size = self._shared, len(request)
        shared.read_view[:size] = request
        data, view, pipeline = shared.read_buffer, shared.read_view, self._fronts[0].requests
        recognition = pipeline._recognition
        found = recognition.last
        assert found is not None, "this request is not known"
        known = found.known
        admission, model = self._backend.admission, known.head.model
        reply = reply_to(1)
        fields = unpack_records(pack_frame([reply]))[0]
        entry = _Unanswered(found, pipeline, self._link)
        times = (reply.queue_ns, reply.input_ns, reply.infer_ns, reply.output_ns, 1, 1)
        replies = [(entry, times, [_Y])] * MANY
        table, channel = self._link.in_flight.requests, self._link.channel

        def look_up() -> None:
            recognition.last = None
            recognition.find(data, view, size)

        def make() -> None:
            assert known_in_flight.send(found, view, pipeline) is not None, "it is not admitted"
            admission.leave(model, 0)

        def check() -> None:
            table[1] = entry
            self._link._on_records([fields])

        def count() -> None:
            known.counters.record_known(replies, entry.started_ns + 100_000)

        best.time("known", lambda: recognition.find(data, view, size))
        best.time("looked up", look_up)
        best.time("form", check)
        channel.is_flush_scheduled = True
        table[0] = entry  # not the first one in flight
        best.time("made", make)
        records = channel.outgoing[-MANY:]
        table.clear()
        channel.outgoing.clear()
        channel.is_flush_scheduled = False
        best.time("count", count, requests=MANY)
        best.time("binary write", lambda: known.response.render([_Y], head_end(), "", ""))
        for turn in ROUNDS_PER_STAGE:
            frame = pack_frame([reply_to((1 << 62) + each) for each in range(turn)])
            best.time("pack", partial(join_records, records[:turn], FRAME_LIMIT_BYTES), turn=turn, requests=turn)
            best.time("unpack", partial(unpack_records, frame), turn=turn, requests=turn)

    def _time_json(self, best: BestTimes, request: bytes) -> None:
        """The parts that JSON adds."""
        text = request[request.index(BLANK) + len(BLANK) :]
        cut = json_template.split_template(text)
        assert cut is not None, "this text is not cut"
        best.time("json cut", lambda: json_template.split_template(text))
        best.time("json numbers", lambda: json_template.parse_lists(cut[1]))

    async def close(self) -> None:
        """Release everything."""
        self._link.close()
        self._far.close()
        for front in self._fronts:
            front.connection_lost(None)


async def _no_controller(command: str, _arguments: dict[str, Any]) -> Any:  # JSON, by command
    raise AssertionError(command)


def request_of(scene: Scene) -> bytes:
    """An inference request to the scene's model."""
    return BY_KEY[OURS].request(scene, MODEL, scene.inputs()[0]).encode()


def reply_to(number: int) -> InferReply:
    """The worker's reply."""
    return InferReply(number, "", "", _WORDS, (_Y,), 0, 20_000, 1_000, 4_000, 1_000, 1)


_Y = KINDS["binary"].inputs()[0].tobytes()
