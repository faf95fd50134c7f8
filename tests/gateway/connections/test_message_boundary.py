"""Message boundary: reported only when it is certain."""

from __future__ import annotations

import random

import pytest

from mmsup.gateway.connections.message_boundary import MessageBoundary

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
Fed = tuple[bytes, list[int | None]]


@pytest.mark.parametrize(
    ("fed", "complete", "reached"),
    [
        ([], True, True),
        ([(GET, [0])], True, True),
        ([(GET + GET, [0, 0])], True, True),
        ([(GET[:9], [])], True, False),
        ([(GET[:9], []), (GET[9:], [0])], True, True),
        ([(GET + b"G", [0])], True, False),
        ([(POST, [4])], False, False),
        ([(POST, [4]), (b"abcd", [])], True, True),
        ([(POST + b"abcd", [4])], True, True),
        ([(POST + b"abcd" + b"GE", [4])], True, False),
        ([(POST + b"abcd" + POST + b"abcd", [4, 4])], True, False),
        ([(POST[:20], []), (POST[20:] + b"abcd", [4])], True, True),
        ([(b"\r\n" + POST + b"abcd", [4])], True, True),
        ([(b"\r\n\r\n" + POST + b"abcd", [4])], True, False),
        ([(POST.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", [None])], True, True),
        ([(POST.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked") + b"0\r\n\r\nG", [None])], True, False),
    ],
)
def test_a_boundary_is_distinguished_from_the_middle_of_a_message(
    fed: list[Fed], complete: bool, reached: bool
) -> None:
    boundary = MessageBoundary()
    for data, lengths in fed:
        boundary.on_bytes(data, lengths)
    assert boundary.is_reached(complete=complete) is reached


def test_half_a_head_is_never_a_boundary() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        messages = [rng.choice([GET, POST + b"abcd", POST + b"\r\n\r\n"]) for _ in range(rng.randint(0, 3))]
        cut = rng.choice([GET, POST])
        at = rng.randint(1, len(cut) - 1)
        boundary = MessageBoundary()
        boundary.on_bytes(b"".join(messages) + cut[:at], [4 if b"POST" in each else 0 for each in messages])
        assert not boundary.is_reached(complete=True)
