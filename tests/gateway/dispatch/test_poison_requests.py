"""Requests whose worker exited: which run alone, which are refused, and what the controller is sent."""

from __future__ import annotations

import asyncio
import time

import pytest

from harness.worker_peer import WorkerPeer, form_of
from mmsup.gateway.dispatch.poison_requests import OFF_LOOP_BYTES
from mmsup.gateway.protocol.request_fingerprint import Tensor, fingerprint
from mmsup.ipc.errors import make_error
from mmsup.ipc.messages.data import Infer
from mmsup.ipc.messages.gateway_control import AddPoisonEntries, PoisonSuspected, RemovePoisonEntry, SuspectCleared
from mmsup.ipc.poison_policy import EXPIRY_S, PoisonEntry
from router_setup import RouterSetup, infer_bytes, refused, with_router

pytestmark = pytest.mark.slow
LARGE = bytes(range(256)) * (2 * OFF_LOOP_BYTES // 256)


def digest_of(data: bytes) -> bytes:
    return fingerprint("m", "1", [Tensor("x", "UINT8", (len(data),), data)])


def sent_messages(built: RouterSetup) -> list[object]:
    """What the gateway sends to the controller from now on."""
    sent: list[object] = []
    built.router.poison_requests.send = sent.append
    return sent


def die(
    built: RouterSetup, peer: WorkerPeer, *running: Infer, generation: int = 1, code: str = "worker_crashed"
) -> None:
    """This generation of the worker exits while it runs a batch of these."""
    for each in running:
        peer.page.request_started(each.id)
    built.router.verdicts.set((1, generation), make_error(code, "died"))
    peer.kill()


def blocked(data: bytes, deaths: int = 2) -> PoisonEntry:
    return PoisonEntry(digest_of(data), "1", deaths, blocked=True, until_s=time.monotonic() + EXPIRY_S)


def is_alone(request: Infer) -> bool:
    return form_of(request).runs_alone


@pytest.mark.parametrize("poison", [b"poison", LARGE], ids=["small", "large"])
def test_requests_of_a_fatal_batch_run_alone_and_only_one_that_kills_again_is_refused(poison: bytes) -> None:
    async def run(built: RouterSetup) -> None:
        sent = sent_messages(built)
        innocent = asyncio.create_task(infer_bytes(built.router, b"innocent"))
        first = await built.peer.request()
        guilty = asyncio.create_task(refused(infer_bytes(built.router, poison)))
        second = await built.peer.request()
        assert not is_alone(first)
        die(built, built.peer, first, second)
        peer = built.second()
        again = [await peer.request(), await peer.request()]
        assert all(is_alone(each) for each in again)
        (mine,) = [each for each in again if peer.bytes_of(each.locations[0]) == b"innocent"]
        (other,) = [each for each in again if each is not mine]
        peer.answer(mine, b"served")
        assert await innocent == b"served"
        die(built, peer, other, generation=2)
        error = await guilty
        assert (error.code, error.retryable) == ("worker_crashed", False)
        last = built.second(3)
        error = await refused(infer_bytes(built.router, poison))
        assert (error.code, error.retryable) == ("request_quarantined", False)
        both, lived, alone = sent
        assert isinstance(both, PoisonSuspected)
        assert {each.fingerprint for each in both.entries} == {digest_of(b"innocent"), digest_of(poison)}
        assert not both.ran_alone
        assert lived == SuspectCleared("m", digest_of(b"innocent"))
        assert isinstance(alone, PoisonSuspected)
        assert [(each.fingerprint, each.deaths, each.blocked) for each in alone.entries] == [
            (digest_of(poison), 2, True)
        ]
        assert alone.ran_alone
        task = asyncio.create_task(infer_bytes(built.router, b"innocent"))
        request = await last.request()
        assert not is_alone(request)
        last.answer(request, b"ok")
        assert await task == b"ok"
        peer.close()
        last.close()

    with_router(run, retry_on_crash=True)


def test_without_a_rerun_suspects_are_separated_when_their_clients_send_them_again() -> None:
    async def run(built: RouterSetup) -> None:
        tasks = [asyncio.create_task(refused(infer_bytes(built.router, each))) for each in (b"a", b"b")]
        die(built, built.peer, *[await built.peer.request() for _ in tasks])
        assert [(error.code, error.retryable) for error in await asyncio.gather(*tasks)] == [
            ("worker_crashed", True)
        ] * 2
        peer = built.second()
        task = asyncio.create_task(infer_bytes(built.router, b"a"))
        request = await peer.request()
        assert is_alone(request)
        peer.answer(request, b"ok")
        assert await task == b"ok"
        guilty = asyncio.create_task(refused(infer_bytes(built.router, b"b")))
        die(built, peer, await peer.request(), generation=2)
        assert (await guilty).retryable is False
        last = built.second(3)
        assert (await refused(infer_bytes(built.router, b"b"))).code == "request_quarantined"
        for each in (peer, last):
            each.close()

    with_router(run)


def test_a_batch_with_requests_of_other_gateways_is_no_run_alone() -> None:
    async def run(built: RouterSetup) -> None:
        sent = sent_messages(built)
        built.router.poison_requests.on_message(
            AddPoisonEntries("m", (PoisonEntry(digest_of(b"x"), "1", 1, blocked=False, until_s=1e12),))
        )
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        request = await built.peer.request()
        built.peer.page.request_started(77)  # of another gateway
        die(built, built.peer, request)
        assert (await task).retryable is True
        (message,) = sent
        assert isinstance(message, PoisonSuspected)
        assert [(each.deaths, each.blocked) for each in message.entries] == [(2, False)]

    with_router(run)


def test_a_request_that_waited_or_had_run_before_is_no_suspect() -> None:
    async def run(built: RouterSetup) -> None:
        sent = sent_messages(built)
        tasks = [asyncio.create_task(infer_bytes(built.router, each)) for each in (b"ran", b"runs", b"waits")]
        requests = [await built.peer.request() for _ in tasks]
        built.peer.page.request_started(requests[0].id)
        built.peer.page.batch_executed(1)
        die(built, built.peer, requests[1])
        peer = built.second()
        for _ in tasks:
            request = await peer.request()
            assert is_alone(request) is (peer.bytes_of(request.locations[0]) == b"runs")
            peer.answer(request, b"ok")
        assert await asyncio.gather(*tasks) == [b"ok"] * 3
        assert [type(each) for each in sent] == [PoisonSuspected, SuspectCleared]
        peer.close()

    with_router(run, retry_on_crash=True)


def test_a_request_of_a_disconnected_client_is_a_suspect_too() -> None:
    async def run(built: RouterSetup) -> None:
        sent = sent_messages(built)
        task = asyncio.create_task(infer_bytes(built.router, b"x"))
        request = await built.peer.request()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        die(built, built.peer, request)
        end = time.monotonic() + 20
        while not sent:
            assert time.monotonic() < end, "no message about the exit was sent"
            await asyncio.sleep(0.001)
        peer = built.second()
        guilty = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        request = await peer.request()
        assert is_alone(request)
        die(built, peer, request, generation=2)
        assert (await guilty).retryable is False
        assert len(sent) == 2
        peer.close()

    with_router(run, retry_on_crash=True)


@pytest.mark.parametrize("code", ["unavailable", "bad_worker_reply", "worker_hung"])
def test_an_exit_that_requests_cannot_cause_makes_no_suspect(code: str) -> None:
    async def run(built: RouterSetup) -> None:
        sent = sent_messages(built)
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
        die(built, built.peer, await built.peer.request(), code=code)
        assert (await task).code == code
        assert not built.router.poison_requests.has_entries("m")
        assert not sent

    with_router(run)


def test_a_request_that_is_not_run_again_is_refused_in_the_end() -> None:
    code = "worker_oom"

    async def run(built: RouterSetup) -> None:
        peers = [built.peer]
        for generation in (1, 2):
            task = asyncio.create_task(refused(infer_bytes(built.router, b"x")))
            die(built, peers[-1], await peers[-1].request(), generation=generation, code=code)
            assert (await task).code == code
            peers.append(built.second(generation + 1))
        assert (await refused(infer_bytes(built.router, b"x"))).code == "request_quarantined"
        for each in peers[1:]:
            each.close()

    with_router(run, retry_on_crash=True)


def test_entries_of_the_controller_hold_until_it_removes_them() -> None:
    async def run(built: RouterSetup) -> None:
        lists = built.router.poison_requests
        lists.on_message(
            AddPoisonEntries("m", (blocked(b"x"), PoisonEntry(digest_of(b"y"), "1", 1, blocked=False, until_s=1e12)))
        )
        assert built.router.poison_requests.has_entries("m")
        assert (await refused(infer_bytes(built.router, b"x"))).code == "request_quarantined"
        lists.on_message(RemovePoisonEntry("m", digest_of(b"y")))
        lists.on_message(RemovePoisonEntry("m", digest_of(b"x")))
        assert (await refused(infer_bytes(built.router, b"x"))).code == "request_quarantined", "it is blocked"
        lists.on_message(RemovePoisonEntry("m", b""))
        assert [each.is_unrestricted for each in built.router.links.by_worker.values()] == [True]
        task = asyncio.create_task(infer_bytes(built.router, b"x"))
        request = await built.peer.request()
        assert not is_alone(request)
        built.peer.answer(request, b"ok")
        assert await task == b"ok"
        lists.on_message(RemovePoisonEntry("unknown", b""))
        assert not lists.has_entries("unknown")

    with_router(run)


def test_a_list_is_dropped_with_its_last_entry_and_a_new_link_knows_whether_there_is_one() -> None:
    async def run(built: RouterSetup) -> None:
        lists = built.router.poison_requests
        lists.on_message(AddPoisonEntries("m", (blocked(b"x"),)))
        peer = built.second()
        links = list(built.router.links.by_worker.values())
        assert [each.is_unrestricted for each in links] == [False, False]
        lists.expire(time.monotonic() + EXPIRY_S)
        assert [each.is_unrestricted for each in links] == [True, True]
        assert not lists.has_entries("m")
        peer.close()

    with_router(run)


def test_a_request_without_time_for_another_worker_is_answered_with_the_verdict() -> None:
    async def run(built: RouterSetup) -> None:
        task = asyncio.create_task(refused(infer_bytes(built.router, b"x", timeout_s=0.3)))
        die(built, built.peer, await built.peer.request())
        error = await task
        assert (error.code, error.retryable) == ("worker_crashed", True)

    with_router(run, retry_on_crash=True)
