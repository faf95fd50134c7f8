"""Requests at workers that answer, die, hang and send wrong replies: each ends once, and every slot is freed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import weakref
from contextlib import closing
from dataclasses import replace

import pytest

from harness.worker_peer import WorkerPeer, route, spec
from mmsup.gateway.dispatch.link_memory import IDLE_EXTENT_S
from mmsup.gateway.dispatch.retry_policy import LOST_WORKERS_LIMIT
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.protocol.inference_job import InferenceJob, InputTensor
from mmsup.ipc.errors import make_error
from mmsup.ipc.messages.data import InferReply, ReplySignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_signature
from router_setup import RouterSetup, infer_bytes, refused, with_router

pytestmark = pytest.mark.slow
BIG = bytes(range(256)) * 400


@pytest.mark.parametrize("zeromq", [False, True], ids=["pair", "zeromq"])
@pytest.mark.parametrize("data", [b"abc", BIG], ids=["inline", "slot"])
def test_the_worker_gets_the_bytes_and_the_client_gets_the_answer(data: bytes, zeromq: bool) -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(infer_bytes(built.router, data))
        request = await built.peer.request()
        assert built.peer.bytes_of(request.locations[0]) == data
        built.peer.answer(request, b"done")
        assert await task == b"done"

    with_router(run, zeromq=zeromq)


def test_a_result_larger_than_its_buffer_needs_one_larger_grant_and_none_the_next_time() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(infer_bytes(built.router, b"x"))
        request = await built.peer.request()
        assert request.output_buffer is None
        built.peer.say(InferReply(request.id, needed_bytes=len(BIG)))
        grant = await built.peer.grant()
        assert grant.id == request.id
        built.peer.answer_in(request.id, grant.segment, grant.offset, BIG)
        assert await task == BIG
        task = asyncio.create_task(infer_bytes(built.router, b"x"))
        request = await built.peer.request()
        assert request.output_buffer is not None
        segment, offset, size = request.output_buffer
        assert size >= len(BIG)
        built.peer.answer_in(request.id, segment, offset, BIG)
        assert await task == BIG

    with_router(run)


def test_a_worker_that_asks_for_ever_larger_buffers_is_told_to_cancel() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        request = await built.peer.request()
        for size in (5000, 10_000):
            built.peer.say(InferReply(request.id, needed_bytes=size))
            await built.peer.grant()
        built.peer.say(InferReply(request.id, needed_bytes=20_000))
        assert (await task).code == "bad_worker_reply"
        assert (await built.peer.drop()).id == request.id
        built.peer.say(InferReply(request.id, "cancelled", "dropped"))
        await settled(built)

    with_router(run)


async def settled(built: RouterSetup) -> None:
    """Returns when nothing is in flight."""
    end = time.monotonic() + 20
    while built.link.in_flight.requests:
        assert time.monotonic() < end, f"{len(built.link.in_flight.requests)} requests stay"
        await asyncio.sleep(0.001)


async def served_by_the_next(built: RouterSetup, task: asyncio.Task[bytes]) -> None:
    """Another worker starts and answers this request, which has the same bytes."""
    peer = built.second()
    request = await peer.request()
    assert peer.bytes_of(request.locations[0]) == BIG
    peer.answer(request, b"ok")
    assert await task == b"ok"
    peer.close()


def test_requests_that_executed_get_the_verdict_and_the_others_the_next_worker() -> None:
    async def run(built: RouterSetup) -> None:
        first = asyncio.create_task(refused(infer_bytes(built.router, BIG)))
        executing = await built.peer.request()
        second = asyncio.create_task(infer_bytes(built.router, BIG))
        await built.peer.request()
        built.peer.page.request_started(executing.id)
        built.peer.kill()
        built.router.verdicts.set((1, 1), make_error("worker_oom", "killed for memory: cap 1 GiB", retryable=False))
        error = await first
        assert (error.code, error.retryable) == ("worker_oom", False)
        await served_by_the_next(built, second)

    with_router(run)


def test_a_request_that_waits_for_memory_of_an_exiting_worker_goes_to_the_next_one() -> None:
    async def run(built: RouterSetup) -> None:
        built.peer.hang_up()  # its socket is closed, and the kernel has not reported its exit yet
        task = asyncio.create_task(infer_bytes(built.router, BIG))
        await asyncio.wait([task], timeout=0.2)
        assert not task.done()
        built.peer.kill()
        await served_by_the_next(built, task)

    with_router(run)


def test_a_request_that_needs_memory_of_a_worker_with_a_closed_socket_does_not_wait_for_ever() -> None:
    async def run(built: RouterSetup) -> None:
        built.peer.hang_up()
        assert (await refused(infer_bytes(built.router, BIG))).code == "no_buffer"

    with_router(run)


def test_without_a_verdict_the_cause_is_unknown_and_answered_within_100_ms() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        request = await built.peer.request()
        built.peer.page.request_started(request.id)
        built.peer.kill()
        built.peer.process.wait()
        error = await task
        assert error.code == "worker_crashed"
        assert error.retryable
        assert "unknown" in error.text

    with_router(run)


@pytest.mark.parametrize("zeromq", [False, True], ids=["pair", "zeromq"])
def test_a_reply_that_arrived_before_the_death_still_counts(zeromq: bool) -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(infer_bytes(built.router, b"x"))
        request = await built.peer.request()
        built.peer.page.request_started(request.id)
        built.peer.answer(request, b"in time")
        assert await task == b"in time"
        built.peer.kill()

    with_router(run, zeromq=zeromq)


def test_a_model_that_allows_it_runs_a_request_once_more_and_never_twice() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(refused(infer_bytes(built.router, BIG)))
        peers = [built.peer]
        for generation in (1, 2):
            peer = peers[-1]
            request = await peer.request()
            assert peer.bytes_of(request.locations[0]) == BIG
            peer.page.request_started(request.id)
            built.router.verdicts.set((1, generation), make_error("worker_crashed", "died of signal SIGSEGV"))
            peer.kill()
            if generation == 1:
                peers.append(built.second())
        assert (await task).code == "worker_crashed"
        peers[1].close()

    with_router(run, retry_on_crash=True)


def test_a_request_whose_reply_was_lost_with_its_worker_is_run_again_within_the_limit() -> None:
    """It was a suspect, ran alone, and the next one killed the worker before the reply had left it."""

    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(infer_bytes(built.router, BIG))
        peers = [built.peer]
        for generation in range(1, LOST_WORKERS_LIMIT):
            request = await peers[-1].request()
            peers[-1].page.request_started(request.id)
            if generation > 1:
                peers[-1].page.batch_executed(1)
            built.router.verdicts.set((1, generation), make_error("worker_crashed", "died of signal SIGABRT"))
            peers[-1].kill()
            peers.append(built.second(generation + 1))
        request = await peers[-1].request()
        assert not task.done()
        peers[-1].answer(request, b"ok")
        assert await task == b"ok"
        for peer in peers[1:]:
            peer.close()

    with_router(run, retry_on_crash=True)


def test_a_request_whose_reply_was_always_lost_is_answered_in_the_end() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(refused(infer_bytes(built.router, BIG)))
        peers = [built.peer]
        for generation in range(1, LOST_WORKERS_LIMIT + 1):
            request = await peers[-1].request()
            assert not task.done()
            peers[-1].page.request_started(request.id)
            peers[-1].page.batch_executed(1)
            built.router.verdicts.set((1, generation), make_error("worker_crashed", "died of signal SIGABRT"))
            peers[-1].kill()
            if generation < LOST_WORKERS_LIMIT:
                peers.append(built.second(generation + 1))
        error = await task
        assert (error.code, error.retryable) == ("worker_crashed", True)
        for peer in peers[1:]:
            peer.close()

    with_router(run, retry_on_crash=True)


def test_a_request_at_many_workers_that_exited_is_answered_though_it_never_started() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(refused(infer_bytes(built.router, BIG)))
        peers = [built.peer]
        for generation in range(1, LOST_WORKERS_LIMIT + 1):
            request = await peers[-1].request()
            assert peers[-1].bytes_of(request.locations[0]) == BIG
            assert not task.done()
            built.router.verdicts.set((1, generation), make_error("worker_crashed", "died of signal SIGKILL"))
            peers[-1].kill()
            if generation < LOST_WORKERS_LIMIT:
                peers.append(built.second(generation + 1))
        error = await task
        assert (error.code, error.retryable) == ("worker_crashed", True)
        for peer in peers[1:]:
            peer.close()

    with_router(run)


def test_a_request_is_not_run_again_after_an_out_of_memory() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        request = await built.peer.request()
        built.peer.page.request_started(request.id)
        built.router.verdicts.set((1, 1), make_error("worker_oom", "killed for memory"))
        built.peer.kill()
        assert (await task).code == "worker_oom"

    with_router(run, retry_on_crash=True)


def test_a_deadline_answers_and_the_slot_waits_for_the_worker() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(refused(infer_bytes(built.router, BIG, timeout_s=0.05)))
        request = await built.peer.request()
        error = await task
        assert error.code == "deadline_exceeded"
        assert built.link.memory.requests.used_bytes
        assert (await built.peer.drop()).id == request.id
        built.peer.answer(request, b"late")
        await settled(built)

    with_router(run)


def test_a_disconnect_frees_nothing_that_the_worker_may_touch() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(infer_bytes(built.router, BIG))
        request = await built.peer.request()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert built.link.memory.requests.used_bytes
        assert (await built.peer.drop()).id == request.id
        built.peer.answer(request, b"too late")
        await settled(built)

    with_router(run)


def test_a_disconnect_during_the_upload_frees_the_slot() -> None:
    async def run(built: RouterSetup) -> None:
        with closing(await built.router.open("m", "")) as exchange:
            await exchange.allocate(len(BIG))
            assert built.link.memory.requests.used_bytes
        assert not built.link.memory.requests.used_bytes

    with_router(run)


def test_a_result_that_expires_while_its_grant_is_allocated_is_answered() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        request = await built.peer.request()
        built.peer.say(InferReply(request.id, needed_bytes=5000))
        built.peer.say(InferReply(request.id, "deadline_exceeded", "kept too long"))
        assert (await task).code == "deadline_exceeded"

    with_router(run)


def test_a_worker_that_asks_for_two_grants_at_once_violates_the_protocol() -> None:
    async def run(built: RouterSetup) -> None:
        faults: list[str] = []

        def on_protocol_error(text: str) -> None:
            faults.append(text)
            built.router.verdicts.set(built.link.worker_id, make_error("bad_worker_reply", text))
            built.link.close()

        built.link.channel.on_protocol_error = on_protocol_error
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        request = await built.peer.request()
        built.peer.page.request_started(request.id)
        built.peer.say(InferReply(request.id, needed_bytes=5000))
        built.peer.say(InferReply(request.id, needed_bytes=5000))
        assert (await task).code in ("bad_worker_reply", "model_restarting")
        assert faults

    with_router(run, grace_s=0.2)


@pytest.mark.parametrize(
    "invalid",
    [
        InferReply(
            0, signature=pack_signature(ReplySignature((TensorSpec("y", "UINT8", (10,)),))), locations=((77, 0, 10),)
        ),
        InferReply(
            0, signature=pack_signature(ReplySignature((TensorSpec("y", "UINT8", (10,)),))), locations=(b"abc",)
        ),
        InferReply(0, signature=pack_signature(ReplySignature((TensorSpec("y", "FP99", (1,)),))), locations=(b"a",)),
        InferReply(0, signature=b"malformed"),
        InferReply(0),
    ],
)
def test_an_invalid_reply_fails_its_request_and_violates_the_protocol(invalid: InferReply) -> None:
    async def run(built: RouterSetup) -> None:
        faults: list[str] = []
        built.link.channel.on_protocol_error = faults.append
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        request = await built.peer.request()
        built.peer.say(replace(invalid, id=request.id))
        assert (await task).code == "bad_worker_reply"
        assert faults

    with_router(run)


def test_unexpected_and_doubled_replies_are_counted_and_dropped() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(infer_bytes(built.router, b"x"))
        request = await built.peer.request()
        built.peer.answer(request, b"right")
        built.peer.answer(request, b"again")
        built.peer.say(InferReply(request.id + 1000, "cancelled", "never sent"))
        assert await task == b"right"
        task = asyncio.create_task(infer_bytes(built.router, b"y"))
        built.peer.answer(await built.peer.request(), b"next")
        assert await task == b"next"
        assert built.link.in_flight.unexpected_replies == 2

    with_router(run)


def test_no_memory_is_an_error_at_once_and_small_requests_continue() -> None:
    async def run(built: RouterSetup) -> None:
        error = await refused(infer_bytes(built.router, bytes(1 << 20)))
        assert error.code == "no_buffer"
        assert error.retry_after_s
        task = asyncio.create_task(infer_bytes(built.router, b"small"))
        built.peer.answer(await built.peer.request(), b"ok")
        assert await task == b"ok"

    with_router(run, arena_bytes=1 << 20)


def test_idle_memory_is_released_when_another_request_needs_it() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(infer_bytes(built.router, BIG))
        built.peer.answer(await built.peer.request(), b"ok")
        await task
        large = bytes(20 << 20)
        task = asyncio.create_task(infer_bytes(built.router, large))
        request = await built.peer.request()
        assert built.peer.bytes_of(request.locations[0]) == large
        built.peer.answer(request, b"ok")
        assert await task == b"ok"

    with_router(run, arena_bytes=30 << 20)


def test_memory_that_was_not_used_for_long_is_released_and_used_memory_stays() -> None:
    async def run(built: RouterSetup) -> None:
        router, memory = built.router, built.link.memory

        async def use() -> None:
            task = asyncio.create_task(infer_bytes(router, BIG))
            built.peer.answer(await built.peer.request(), b"ok")
            assert await task == b"ok"

        def sweep(now_s: float) -> int:
            memory.release_unused(now_s)
            return router.memory_quota.held_bytes

        await use()
        assert sweep(0)
        assert sweep(IDLE_EXTENT_S - 1)
        await use()
        assert sweep(IDLE_EXTENT_S + 1), "it was used in between"
        task = asyncio.create_task(infer_bytes(router, BIG))
        request = await built.peer.request()
        assert sweep(5 * IDLE_EXTENT_S), "it is in use"
        built.peer.answer(request, b"ok")
        await task
        assert sweep(5 * IDLE_EXTENT_S + 1)
        assert not sweep(6 * IDLE_EXTENT_S + 1)
        await use()

    with_router(run)


def test_a_full_queue_is_refused_at_once() -> None:
    async def run(built: RouterSetup) -> None:
        with closing(await built.router.open("m", "")), closing(await built.router.open("m", "")):
            error = await refused(built.router.open("m", ""))
        assert error.code == "queue_full"
        assert error.text.startswith("Exceeds maximum queue size")

    with_router(run, max_queue=2)


def test_requests_wait_for_a_worker_that_restarts() -> None:
    async def run(built: RouterSetup) -> None:
        closed = asyncio.Event()
        on_close = built.link.on_close

        def close(link: WorkerLink) -> None:
            on_close(link)
            closed.set()

        built.link.on_close = close
        built.peer.kill()
        await closed.wait()
        task = asyncio.create_task(infer_bytes(built.router, b"x"))
        await asyncio.sleep(0)
        peer = built.second()
        peer.answer(await peer.request(), b"back")
        assert await task == b"back"
        peer.close()

    with_router(run)


def test_a_request_that_waits_for_a_worker_is_not_woken_by_requests_to_other_models() -> None:
    async def run(built: RouterSetup) -> None:
        built.router.routes.put(route(spec("other")))
        peer = WorkerPeer(built.folder, spec("other"), instance=2)
        peer.link(built.router, built.hub)
        built.router.links.stop_routing((1, 1))
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        await asyncio.sleep(0)
        (waits,) = built.router.waiters.priorities
        with closing(await built.router.open("other", "")):
            pass
        assert list(built.router.waiters.priorities) == [waits]
        assert not waits.done()
        assert (await task).code == "model_restarting"
        peer.close()

    with_router(run, grace_s=0.2)


def test_waiting_ends_after_the_grace_time() -> None:
    async def run(built: RouterSetup) -> None:
        built.router.links.stop_routing((1, 1))
        error = await refused(infer_bytes(built.router, b"x"))
        assert error.code == "model_restarting"

    with_router(run, grace_s=0.05)


def test_an_unlinked_worker_finishes_its_requests_and_gets_no_new_ones() -> None:
    async def run(built: RouterSetup) -> None:
        old = asyncio.create_task(infer_bytes(built.router, b"old"))
        request = await built.peer.request()
        peer = built.second()
        built.router.links.stop_routing((1, 1))
        new = asyncio.create_task(infer_bytes(built.router, b"new"))
        peer.answer(await peer.request(), b"from the new one")
        assert await new == b"from the new one"
        built.router.links.close_drained()
        assert built.link.worker_id in built.router.links.by_worker
        built.peer.answer(request, b"from the old one")
        assert await old == b"from the old one"
        built.router.links.close_drained()
        assert built.link.worker_id not in built.router.links.by_worker
        peer.close()

    with_router(run)


def test_the_least_loaded_worker_gets_the_next_request() -> None:
    async def run(built: RouterSetup) -> None:
        peer = built.second()
        tasks = [asyncio.create_task(infer_bytes(built.router, b"x")) for _ in range(4)]
        requests = [await built.peer.request(), await peer.request(), await built.peer.request(), await peer.request()]
        for each, request in zip([built.peer, peer] * 2, requests, strict=True):
            each.answer(request, b"ok")
        assert await asyncio.gather(*tasks) == [b"ok"] * 4
        peer.close()

    with_router(run)


def test_a_worker_counts_as_loaded_while_a_body_for_it_is_received() -> None:
    async def run(built: RouterSetup) -> None:
        peer = built.second()
        with closing(await built.router.open("m", "")) as one, closing(await built.router.open("m", "")) as other:
            for each in (one, other):
                await each.allocate(1)
            task = asyncio.create_task(infer_bytes(built.router, b"x"))
            first = await built.peer.request()
            rest = asyncio.create_task(other.resume(InferenceJob([InputTensor("x", "UINT8", (1,), 0, 1)], [], {})))
            peer.answer(await peer.request(), b"ok")
            built.peer.answer(first, b"ok")
            assert await task == b"ok"
            await rest
        assert [link.reserved_requests for link in built.router.links.by_worker.values()] == [0, 0]
        peer.close()

    with_router(run)


def test_a_closed_link_is_freed_at_once_without_a_collection_of_garbage() -> None:
    async def run(built: RouterSetup) -> None:
        links = built.router.links
        links.stop_routing(built.link.worker_id)
        peer = built.second()
        task = asyncio.create_task(infer_bytes(built.router, BIG))
        request = await peer.request()
        peer.answer(request, b"done")
        assert await task == b"done"
        link = weakref.ref(links.by_worker[1, 2])
        gc.disable()
        try:
            links.close_all()
            for _ in range(3):  # what the loop was to call
                await asyncio.sleep(0)
            assert link() is None, "its memory is kept until garbage is collected"
        finally:
            gc.enable()
            peer.close()

    with_router(run)
