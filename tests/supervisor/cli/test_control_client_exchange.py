"""The client of chaos hides nothing: what is refused, cut off, or said without being asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from mmsup.supervisor.chaos.clients.http_client import (
    ConnectionRefused,
    ConnectionReset,
    HttpCall,
    HttpClient,
    HttpReply,
    MalformedReply,
    parse_reply,
)
from small_server import Speak, listening

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CALL = HttpCall("/v2/x", b"body", (("X-Y", "z"),))


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (OK, b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3;x=y\r\nay!\r\n0\r\n\r\n", b"okay!"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_a_reply_is_read_when_it_is_whole_and_not_before(raw: bytes, body: bytes) -> None:
    whole = parse_reply(bytearray(raw), at_end=False)
    assert whole is not None
    assert (whole[0].body, whole[1]) == (body, len(raw))
    assert all(parse_reply(bytearray(raw[:end]), at_end=False) is None for end in range(len(raw)))


def test_what_follows_a_reply_is_left_to_the_next() -> None:
    found = parse_reply(bytearray(OK + OK), at_end=False)
    assert found is not None
    assert found[1] == len(OK)


def test_a_reply_without_a_length_ends_with_its_connection() -> None:
    raw = bytearray(b"HTTP/1.1 200 OK\r\n\r\nrest")
    assert parse_reply(raw, at_end=False) is None
    assert parse_reply(raw, at_end=True) == (HttpReply(200, {}, b"rest"), len(raw))


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        bytes(1 << 17),
    ],
)
def test_what_is_no_http_is_said_to_be_none(raw: bytes) -> None:
    with pytest.raises(MalformedReply):
        parse_reply(bytearray(raw), at_end=False)


async def with_server(speak: Speak, talk: Callable[[HttpClient], Awaitable[None]]) -> list[int]:
    """Let a client talk to a server that speaks so; the requests whose connections said more than they were asked."""
    strays: list[int] = []
    async with listening(speak) as port:
        door = HttpClient("127.0.0.1", port, strays.append)
        await talk(door)
        door.close()
    return strays


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while head := await reader.read(1 << 16):
        assert head.startswith(b"POST /v2/x HTTP/1.1\r\n")
        writer.write(OK)


def test_a_connection_is_used_again() -> None:
    ports = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports.append(writer.get_extra_info("peername")[1])
        await polite(reader, writer)

    async def talk(door: HttpClient) -> None:
        for number in (1, 2, 3):
            assert (await door.send(CALL, number)).body == b"ok"
        await asyncio.gather(door.send(CALL, 4), door.send(CALL, 5))

    assert asyncio.run(with_server(speak, talk)) == []
    assert len(ports) == 2


def test_a_connection_that_is_cut_is_a_reset() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(OK[:20])

    async def talk(door: HttpClient) -> None:
        with pytest.raises(ConnectionReset):
            await door.send(CALL, 1)

    assert asyncio.run(with_server(speak, talk)) == []


def test_a_second_reply_is_a_stray_of_the_request_before() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(OK + OK)
        await reader.read(1)

    async def talk(door: HttpClient) -> None:
        assert (await door.send(CALL, 7)).status == 200

    assert asyncio.run(with_server(speak, talk)) == [7]


def test_a_raw_connection_has_no_strays() -> None:
    async def talk(door: HttpClient) -> None:
        connection = await door.connect(raw=True)
        connection.write(door.encode(CALL))
        assert (await door.send(CALL)).body == b"ok"
        connection.close()

    assert asyncio.run(with_server(polite, talk)) == []


def test_a_port_without_a_listener_refuses() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        door = HttpClient("127.0.0.1", taken.getsockname()[1], lambda _: None)
        with pytest.raises(ConnectionRefused):
            asyncio.run(door.send(CALL))
