"""Open-loop load: it does not wait for answers, counts latency from the planned time, and records every outcome."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable

import pytest

from mmsup.supervisor.chaos.clients.http_client import HttpClient
from mmsup.supervisor.chaos.clients.load import LoadGenerator, RequestRate
from mmsup.supervisor.chaos.clients.protocol import V2Adapter
from mmsup.supervisor.chaos.clients.sequences import LENGTH, ClientSequences
from mmsup.supervisor.chaos.observe.history import History, Invoke, RequestOutcome
from small_server import listening

Answer = Callable[[bytes], Awaitable[bytes]]


def echo(body: bytes) -> bytes:
    """What the fault model answers to a request in JSON."""
    (x, *_) = json.loads(body)["inputs"]
    outputs = [{"name": "y", "data": x["data"]}, {"name": "life", "data": [1, 4242]}]
    return json.dumps({"outputs": outputs}).encode()


async def at_once(body: bytes) -> bytes:
    return echo(body)


async def talk(answer: Answer, speak: Callable[[LoadGenerator, History], Awaitable[None]]) -> History:
    """Clients in front of a server that answers so; what was written down."""
    history = History()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Le")]
            body = await answer(await reader.readexactly(length))
            if not body:
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async with listening(serve) as port:
        client = HttpClient("127.0.0.1", port)
        await speak(LoadGenerator(client, V2Adapter(binary=False), history, ["a", "b"], 0.2), history)
        client.close()
    return history


def outcomes(history: History) -> list[RequestOutcome]:
    return [each for each in history.records if isinstance(each, RequestOutcome)]


def one(answer: Answer, size: int = 8) -> RequestOutcome:
    """The outcome of one request."""

    async def speak(clients: LoadGenerator, history: History) -> None:
        await clients.send("a", size)

    (outcome,) = outcomes(asyncio.run(talk(answer, speak)))
    return outcome


def test_an_echo_is_right_and_names_its_worker() -> None:
    outcome = one(at_once)
    assert (outcome.kind, outcome.status, outcome.pid, outcome.revision) == ("right", 200, 4242, 1)


def test_other_bytes_are_wrong() -> None:
    async def answer(body: bytes) -> bytes:
        return echo(body).replace(b".0]", b".5]", 1)

    assert one(answer).kind == "wrong"


def test_the_bytes_of_an_earlier_request_are_crossed_and_it_is_named() -> None:
    first: list[bytes] = []

    async def answer(body: bytes) -> bytes:
        first.append(echo(body))
        return first[0]

    async def speak(clients: LoadGenerator, history: History) -> None:
        await clients.send("a", 8)
        await clients.send("b", 8)

    right, crossed = outcomes(asyncio.run(talk(answer, speak)))
    assert right.kind == "right"
    assert (crossed.kind, crossed.whose) == ("crossed", right.id)


def test_a_connection_that_ends_is_a_reset() -> None:
    async def answer(body: bytes) -> bytes:
        return b""

    assert one(answer).kind == "reset"


@pytest.mark.slow
def test_a_reply_that_does_not_come_within_the_timeout_is_lost() -> None:
    async def answer(body: bytes) -> bytes:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody answers")

    assert one(answer).kind == "timeout"


@pytest.mark.slow
def test_requests_go_out_while_earlier_ones_wait() -> None:
    open_at_once: list[int] = [0, 0]
    enough = asyncio.Event()

    async def answer(body: bytes) -> bytes:
        open_at_once[0] += 1
        open_at_once[1] = max(open_at_once)
        if open_at_once[0] == 5:
            enough.set()
        await enough.wait()
        open_at_once[0] -= 1
        return echo(body)

    async def speak(clients: LoadGenerator, history: History) -> None:
        await clients.run_model("a", RequestRate(200.0, history.now() + 0.3), random.Random(1))

    history = asyncio.run(talk(answer, speak))
    invokes = [each for each in history.records if isinstance(each, Invoke)]
    assert len(invokes) == len(outcomes(history)) > 10
    assert all(each.t >= each.intended for each in invokes)
    assert open_at_once[1] >= 5


def test_requests_of_sequences_say_where_they_are_and_a_state_that_was_not_theirs_is_wrong() -> None:
    runs: dict[int, int] = {}
    said: list[tuple[int, bool, bool]] = []

    async def answer(body: bytes) -> bytes:
        given = json.loads(body)["parameters"]
        number = given["sequence_id"]
        said.append((number, given["sequence_start"], given["sequence_end"]))
        runs[number] = 1 if given["sequence_start"] else runs[number] + 1
        count = 1 if len(said) == LENGTH + 3 else runs[number]  # as if it had begun anew, in silence
        reply = json.loads(echo(body))
        return json.dumps({"outputs": [*reply["outputs"], {"name": "runs", "data": [count]}]}).encode()

    async def speak(clients: LoadGenerator, history: History) -> None:
        clients.sequences = {"a": ClientSequences()}
        for _ in range(LENGTH + 4):
            await clients.send("a", 8)

    found = outcomes(asyncio.run(talk(answer, speak)))
    assert [each.kind for each in found] == ["right"] * (LENGTH + 2) + ["wrong", "right"]
    assert said[:LENGTH] == [(1, number == 0, number == LENGTH - 1) for number in range(LENGTH)]
    assert said[LENGTH:] == [(2, True, False), (2, False, False), (2, False, False), (3, True, False)]
