"""Frames between gateway and worker that are forged by a hostile worker or damaged in transit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness.worker_peer import WorkerPeer, result
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.messages.data import Infer, InferReply, ReplySignature, TensorLocation
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_frame, pack_signature
from router_setup import RouterSetup, infer_bytes, with_router

pytestmark = pytest.mark.slow

BIG = 20_000
OURS, OTHERS = b"\x11" * BIG, b"\x22" * BIG
"""The outcomes of two callers of one worker."""
PROVED = frozenset({"bad_worker_reply", "worker_crashed", "deadline_exceeded", "no_buffer"})
"""The worker is at fault, or asked for more memory than there is."""

edges = st.sampled_from([0, 1, -1, BIG, 1 << 31, 1 << 32, (1 << 63) - 1, -(1 << 63)])
numbers = edges | st.integers(-(1 << 63), (1 << 64) - 1)
specs = st.builds(
    TensorSpec,
    st.sampled_from(["y", "", "z" * 300]),
    st.sampled_from(["UINT8", "FP64", "BYTES", "FP31"]),
    st.lists(numbers, max_size=3).map(tuple),
)
words = st.binary(max_size=20) | st.lists(specs, max_size=3).map(
    lambda found: pack_signature(ReplySignature(tuple(found)))
)


@st.composite
def lies(draw: st.DrawFn, request: Infer, other: int) -> bytes:
    """One frame of a worker that was granted what `request` says; `other` is the id of another request."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(min_size=1, max_size=200))
    segment, offset, size = request.output_buffer or (0, 0, 0)
    near = st.tuples(
        st.sampled_from([segment, segment + 1]),
        st.integers(offset - 2, offset + 2) | numbers,
        st.integers(size - 2, size + 2) | numbers,
    )
    places: st.SearchStrategy[TensorLocation] = near | st.binary(max_size=50)
    reply = InferReply(
        draw(st.sampled_from([request.id, other, request.id + 7])),
        needed_bytes=draw(st.sampled_from([0, 0, 0, 1, 1 << 60, -1])),
        signature=draw(words),
        locations=tuple(draw(st.lists(places, max_size=3))),
    )
    try:
        return pack_frame([reply])
    except (OverflowError, ValueError):  # no number of the wire
        return b"\xff"


@given(st.data())
@settings(
    max_examples=30,
    deadline=None,
    phases=(Phase.reuse, Phase.generate),  # each example has a house of its own: to shrink one would take minutes
    suppress_health_check=[HealthCheck.too_slow],
)
@pytest.mark.fault("F38")
def test_whatever_a_worker_says_each_request_has_one_outcome_and_nobody_elses_bytes(data: st.DataObject) -> None:
    async def run(built: RouterSetup) -> None:
        peer = built.peer
        built.router.output_sizes.observe(("m", "1"), BIG)  # so that room is granted
        tasks = [asyncio.create_task(outcome(built, each, 5.0)) for each in (OURS, OTHERS)]
        first, second = await peer.request(), await peer.request()
        for each in (first, second):
            peer.page.request_started(each.id)  # they ran, so nobody else is to be waited for
        for _ in range(data.draw(st.integers(1, 3))):
            if not peer.pair.send(data.draw(lies(first, second.id))):
                break
        await end_of(built)
        for task in tasks:
            got = await task
            assert isinstance(got, bytes) or got.code in PROVED, got
            assert got not in (OURS, OTHERS), "memory that nobody has written into came back"

    with_router(run)


async def end_of(built: RouterSetup) -> None:
    """Kill the worker and wait until the gateway has noticed."""
    ended, tell = asyncio.Event(), built.link.on_close

    def end(link: WorkerLink) -> None:
        tell(link)
        ended.set()

    if not built.link.closed:
        built.link.on_close = end
        built.peer.kill()
        await ended.wait()


Proxy = Callable[[bytes, bytes], list[bytes]]
"""Two frames as sent, and what arrives."""
PROXIES: dict[str, Proxy] = {
    "dropped": lambda first, second: [second],
    "doubled": lambda first, second: [first, first, second, second],
    "reordered": lambda first, second: [second, first],
    "cut": lambda first, second: [first[: len(first) // 2], second],
    "corrupted": lambda first, second: [bytes([first[0] ^ 0xFF]) + first[1:], second],
}


@pytest.mark.fault("F41")
@pytest.mark.parametrize("how", PROXIES)
def test_frames_hurt_on_their_way_give_nobody_the_bytes_of_another(how: str) -> None:
    async def run(built: RouterSetup) -> None:
        peer = built.peer
        tasks = [asyncio.create_task(outcome(built, each, 0.5)) for each in (OURS, OTHERS)]
        requests = [await peer.request() for _ in tasks]
        for each in requests:
            peer.page.request_started(each.id)
        frames = [frame_of(peer, each) for each in requests]
        for frame in PROXIES[how](*frames):
            with contextlib.suppress(OSError):  # trust is lost, and the link with it
                peer.pair.send(frame)
        ours, others = [await each for each in tasks]
        if how in ("doubled", "reordered"):
            assert (ours, others) == (OURS[:100], OTHERS[:100])
        elif how == "dropped":
            assert isinstance(ours, MmsupError)
            assert (ours.code, others) == ("deadline_exceeded", OTHERS[:100])
        else:
            assert isinstance(ours, MmsupError)
            assert ours.code in PROVED
            assert others == OTHERS[:100] or isinstance(others, MmsupError)
        assert built.link.in_flight.unexpected_replies == (2 if how == "doubled" else 0)
        await end_of(built)

    with_router(run)


@pytest.mark.fault("F41")
def test_a_frame_that_is_delayed_past_the_deadline_is_dropped_and_meets_no_later_request() -> None:
    async def run(built: RouterSetup) -> None:
        peer = built.peer
        task = asyncio.create_task(outcome(built, OURS, 0.2))
        late = frame_of(peer, await peer.request())
        error = await task
        assert isinstance(error, MmsupError)
        assert error.code == "deadline_exceeded"
        await peer.drop()
        task = asyncio.create_task(outcome(built, OTHERS, 5.0))
        request = await peer.request()
        assert peer.pair.send(late)
        assert peer.pair.send(frame_of(peer, request))
        assert await task == OTHERS[:100]
        await end_of(built)

    with_router(run)


async def outcome(built: RouterSetup, data: bytes, timeout_s: float) -> bytes | MmsupError:
    """The outcome of one request."""
    try:
        return await infer_bytes(built.router, data, timeout_s)
    except IndexError:  # an answer without outputs
        return b""
    except MmsupError as error:
        return error


def frame_of(peer: WorkerPeer, request: Infer) -> bytes:
    """The correct reply: the beginning of the input."""
    return pack_frame([result(request.id, peer.bytes_of(request.locations[0])[:100])])
