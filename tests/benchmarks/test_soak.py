"""The soak test judges every reply by its own request, and memory by its slope after the warm-up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import soak
from soak_requests import RequestMix, SoakRequest

OK = b"HTTP/1.1 200 OK\r\n\r\n"
VALUES = np.array([1.5, -0.1], np.float32)
BINARY = SoakRequest("binary", b"", tensor=VALUES.tobytes(), name="soak-7")
JSON = SoakRequest("JSON", b"", data=VALUES.tobytes())
MIB = 1 << 20


@pytest.mark.parametrize(
    ("request_", "head", "body"),
    [
        (BINARY, OK, b'{"id":"soak-7"}' + VALUES.tobytes()),
        (BINARY, OK.replace(b"\r\n\r\n", b"\r\nX-Request-Id: soak-7\r\n\r\n"), VALUES.tobytes()),
        (JSON, OK, b'{"outputs":[{"data":[1.5,-0.1]}]}'),
        (SoakRequest("bad JSON", b"", 400, word="bad_request"), b"HTTP/1.1 400 Bad Request\r\n\r\n", b"bad_request"),
    ],
)
def test_the_reply_to_its_own_request_is_right(request_: SoakRequest, head: bytes, body: bytes) -> None:
    assert not request_.fault(head, body)


@pytest.mark.parametrize(
    ("request_", "head", "body"),
    [
        (BINARY, OK, b'{"id":"soak-8"}' + VALUES.tobytes()),
        (BINARY, OK, b'{"id":"soak-7"}' + VALUES[::-1].tobytes()),
        (BINARY, b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b'{"id":"soak-7"}' + VALUES.tobytes()),
        (JSON, OK, b'{"outputs":[{"data":[1.5,-0.2]}]}'),
        (SoakRequest("bad JSON", b"", 400, word="bad_request"), b"HTTP/1.1 400 Bad Request\r\n\r\n", b"other"),
    ],
)
def test_any_other_reply_is_wrong(request_: SoakRequest, head: bytes, body: bytes) -> None:
    assert request_.kind in request_.fault(head, body)


def test_a_client_sends_requests_of_every_kind_with_ids_of_their_own() -> None:
    mix = RequestMix(3)
    made = [mix.next_one() for _ in range(4000)]
    assert {each.kind for each in made} >= {"binary", "JSON", "id in JSON", "rows", "model raised", "wrong shape"}
    names = [each.name for each in made if each.name]
    assert len(names) == len(set(names)) > 100
    for each in made:
        head, _, body = each.message.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert not each.data or json.loads(body)


def samples(*held: float, threads: int = 2) -> list[tuple[int, dict[str, Any]]]:
    """One process, sampled at 0 %, 10 %, 20 %, … of a hundred requests."""
    return [(10 * place, {"worker": (int(mib * MIB), 9, threads)}) for place, mib in enumerate(held)]


def test_memory_that_reaches_its_size_in_the_warm_up_is_flat() -> None:
    table = soak.growth(samples(10, 40, 50, 50, 51, 50, 49, 50, 50, 51, 50), 100)
    assert table["worker"]["bytes_at_marks"] == [40 * MIB, 50 * MIB, 50 * MIB]
    assert soak.is_flat(table)


def test_memory_that_grows_all_along_is_not() -> None:
    table = soak.growth(samples(*range(50, 61)), 100)
    assert table["worker"]["bytes_per_million_requests"] == pytest.approx(1e5 * MIB)
    assert not soak.is_flat(table)


def test_a_thread_more_is_growth() -> None:
    assert not soak.is_flat(soak.growth([*samples(50, 50, 50), (100, {"worker": (50 * MIB, 9, 3)})], 100))
