"""What a gateway does about requests whose worker ended: who is run alone, who is refused, who is told."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway_house import House, ask, in_house, refused
from harness.worker_peer import WorkerPeer, form_of
from mmsup.gateway.dispatch.poison_requests import ASIDE_BYTES
from mmsup.gateway.dispatch.request_fingerprint import Tensor, fingerprint
from mmsup.ipc.errors import error_of
from mmsup.ipc.messages.data import Infer
from mmsup.ipc.messages.gateway_control import Lived, Pardon, Quarantine, Suspected
from mmsup.ipc.poison_policy import EXPIRY_S, Case

pytestmark = pytest.mark.slow
LARGE = bytes(range(256)) * (2 * ASIDE_BYTES // 256)


def print_of(data: bytes) -> bytes:
    return fingerprint("m", "1", [Tensor("x", "UINT8", (len(data),), data)])


def heard(built: House) -> list[object]:
    """What the gateway tells the brain from now on."""
    said: list[object] = []
    built.backend.lists.say = said.append
    return said


def die(built: House, peer: WorkerPeer, *running: Infer, generation: int = 1, code: str = "worker_crashed") -> None:
    """That life ends in a run of these."""
    for each in running:
        peer.page.begin(each.id)
    built.backend.judge((1, generation), error_of(code, "died"))
    peer.kill()


def blocked(data: bytes, deaths: int = 2) -> Case:
    return Case(print_of(data), "1", deaths, blocked=True, until_s=time.monotonic() + EXPIRY_S)


def is_alone(request: Infer) -> bool:
    return form_of(request).alone


@pytest.mark.parametrize("poison", [b"poison", LARGE], ids=["small", "large"])
def test_who_died_together_is_run_alone_and_only_who_dies_again_is_refused(poison: bytes) -> None:
    async def run(built: House) -> None:
        said = heard(built)
        innocent = asyncio.create_task(ask(built.backend, b"innocent"))
        first = await built.peer.request()
        guilty = asyncio.create_task(refused(ask(built.backend, poison)))
        second = await built.peer.request()
        assert not is_alone(first)
        die(built, built.peer, first, second)
        peer = built.second()
        again = [await peer.request(), await peer.request()]
        assert all(is_alone(each) for each in again)
        (mine,) = [each for each in again if peer.bytes_of(each.places[0]) == b"innocent"]
        (other,) = [each for each in again if each is not mine]
        peer.answer(mine, b"served")
        assert await innocent == b"served"
        die(built, peer, other, generation=2)
        error = await guilty
        assert (error.code, error.retryable) == ("worker_crashed", False)
        last = built.second(3)
        error = await refused(ask(built.backend, poison))
        assert (error.code, error.retryable) == ("request_quarantined", False)
        both, lived, alone = said
        assert isinstance(both, Suspected)
        assert {each.fingerprint for each in both.cases} == {print_of(b"innocent"), print_of(poison)}
        assert not both.alone
        assert lived == Lived("m", print_of(b"innocent"))
        assert isinstance(alone, Suspected)
        assert [(each.fingerprint, each.deaths, each.blocked) for each in alone.cases] == [(print_of(poison), 2, True)]
        assert alone.alone
        task = asyncio.create_task(ask(built.backend, b"innocent"))
        request = await last.request()
        assert not is_alone(request)
        last.answer(request, b"ok")
        assert await task == b"ok"
        peer.close()
        last.close()

    in_house(run, retry_on_crash=True)


def test_without_a_second_run_the_suspects_are_told_apart_when_their_callers_try_again() -> None:
    async def run(built: House) -> None:
        tasks = [asyncio.create_task(refused(ask(built.backend, each))) for each in (b"a", b"b")]
        die(built, built.peer, *[await built.peer.request() for _ in tasks])
        assert [(error.code, error.retryable) for error in await asyncio.gather(*tasks)] == [
            ("worker_crashed", True)
        ] * 2
        peer = built.second()
        task = asyncio.create_task(ask(built.backend, b"a"))
        request = await peer.request()
        assert is_alone(request)
        peer.answer(request, b"ok")
        assert await task == b"ok"
        guilty = asyncio.create_task(refused(ask(built.backend, b"b")))
        die(built, peer, await peer.request(), generation=2)
        assert (await guilty).retryable is False
        last = built.second(3)
        assert (await refused(ask(built.backend, b"b"))).code == "request_quarantined"
        for each in (peer, last):
            each.close()

    in_house(run)


def test_a_run_of_other_gateways_requests_too_is_no_run_alone() -> None:
    async def run(built: House) -> None:
        said = heard(built)
        built.backend.lists.hear(Quarantine("m", (Case(print_of(b"x"), "1", 1, blocked=False, until_s=1e12),)))
        task = asyncio.create_task(refused(ask(built.backend, b"x")))
        request = await built.peer.request()
        built.peer.page.begin(77)  # of another gateway
        die(built, built.peer, request)
        assert (await task).retryable is True
        (message,) = said
        assert isinstance(message, Suspected)
        assert [(each.deaths, each.blocked) for each in message.cases] == [(2, False)]

    in_house(run)


def test_who_waited_or_had_run_before_is_no_suspect() -> None:
    async def run(built: House) -> None:
        said = heard(built)
        tasks = [asyncio.create_task(ask(built.backend, each)) for each in (b"ran", b"runs", b"waits")]
        requests = [await built.peer.request() for _ in tasks]
        built.peer.page.begin(requests[0].id)
        built.peer.page.executed(1)
        die(built, built.peer, requests[1])
        peer = built.second()
        for _ in tasks:
            request = await peer.request()
            assert is_alone(request) is (peer.bytes_of(request.places[0]) == b"runs")
            peer.answer(request, b"ok")
        assert await asyncio.gather(*tasks) == [b"ok"] * 3
        assert [type(each) for each in said] == [Suspected, Lived]
        peer.close()

    in_house(run, retry_on_crash=True)


def test_a_client_that_left_is_found_out_all_the_same() -> None:
    async def run(built: House) -> None:
        said = heard(built)
        task = asyncio.create_task(ask(built.backend, b"x"))
        request = await built.peer.request()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        die(built, built.peer, request)
        end = time.monotonic() + 20
        while not said:
            assert time.monotonic() < end, "nobody was told of the death"
            await asyncio.sleep(0.001)
        peer = built.second()
        guilty = asyncio.create_task(refused(ask(built.backend, b"x")))
        request = await peer.request()
        assert is_alone(request)
        die(built, peer, request, generation=2)
        assert (await guilty).retryable is False
        assert len(said) == 2
        peer.close()

    in_house(run, retry_on_crash=True)


@pytest.mark.parametrize("code", ["unavailable", "bad_worker_reply"])
def test_an_end_that_is_not_the_doing_of_what_ran_makes_no_suspect(code: str) -> None:
    async def run(built: House) -> None:
        said = heard(built)
        task = asyncio.create_task(refused(ask(built.backend, b"x")))
        die(built, built.peer, await built.peer.request(), code=code)
        assert (await task).code == code
        assert not built.backend.lists.has("m")
        assert not said

    in_house(run)


@pytest.mark.parametrize("code", ["worker_oom", "worker_hung"])
def test_what_is_not_tried_again_is_refused_in_the_end(code: str) -> None:
    async def run(built: House) -> None:
        peers = [built.peer]
        for generation in (1, 2):
            task = asyncio.create_task(refused(ask(built.backend, b"x")))
            die(built, peers[-1], await peers[-1].request(), generation=generation, code=code)
            assert (await task).code == code
            peers.append(built.second(generation + 1))
        assert (await refused(ask(built.backend, b"x"))).code == "request_quarantined"
        for each in peers[1:]:
            each.close()

    in_house(run, retry_on_crash=True)


def test_what_the_brain_says_holds_until_it_takes_it_back() -> None:
    async def run(built: House) -> None:
        lists = built.backend.lists
        lists.hear(Quarantine("m", (blocked(b"x"), Case(print_of(b"y"), "1", 1, blocked=False, until_s=1e12))))
        assert built.backend.lists.has("m")
        assert (await refused(ask(built.backend, b"x"))).code == "request_quarantined"
        lists.hear(Pardon("m", print_of(b"y")))
        lists.hear(Pardon("m", print_of(b"x")))
        assert (await refused(ask(built.backend, b"x"))).code == "request_quarantined", "it is blocked"
        lists.hear(Pardon("m", b""))
        assert [each.is_plain for each in built.backend.links.values()] == [True]
        task = asyncio.create_task(ask(built.backend, b"x"))
        request = await built.peer.request()
        assert not is_alone(request)
        built.peer.answer(request, b"ok")
        assert await task == b"ok"
        lists.hear(Pardon("unheard_of", b""))
        assert not lists.has("unheard_of")

    in_house(run)


def test_a_list_ends_with_its_last_word_and_a_new_link_knows_whether_there_is_one() -> None:
    async def run(built: House) -> None:
        lists = built.backend.lists
        lists.hear(Quarantine("m", (blocked(b"x"),)))
        peer = built.second()
        links = list(built.backend.links.values())
        assert [each.is_plain for each in links] == [False, False]
        lists.expire(time.monotonic() + EXPIRY_S)
        assert [each.is_plain for each in links] == [True, True]
        assert not lists.has("m")
        peer.close()

    in_house(run)


def test_a_deadline_without_time_for_another_life_is_answered_with_the_death() -> None:
    async def run(built: House) -> None:
        task = asyncio.create_task(refused(ask(built.backend, b"x", timeout_s=0.3)))
        die(built, built.peer, await built.peer.request())
        error = await task
        assert (error.code, error.retryable) == ("worker_crashed", True)

    in_house(run, retry_on_crash=True)
