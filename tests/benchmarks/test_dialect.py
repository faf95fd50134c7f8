"""Every server that is compared is asked by chaos in its own words, and its answers are read as they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dialect import HARMS, PeerAdapter, payload_values
from drivers.peer import Peer
from ordeal import FAULTY, SCENE
from roster import BY_KEY, FAMOUS

from mmsup.supervisor.chaos.clients.http_client import HttpReply
from mmsup.supervisor.chaos.clients.payload import make_payload, request_number_of
from mmsup.supervisor.chaos.clients.protocol import FaultCommand, ProtocolAdapter

MADE = make_payload(2, 77, 64)


def answer_of(peer: Peer) -> bytes:
    """What the server would say to it."""
    if peer.key == "mlserver":
        return json.dumps({"outputs": [{"name": "y", "data": MADE.values.tolist()}]}).encode()
    if not peer.speaks_oip:
        return MADE.data
    output = {"name": "y", "parameters": {"binary_data_size": len(MADE.data)}}
    return json.dumps({"outputs": [output]}).encode() + MADE.data


@pytest.mark.parametrize("key", FAMOUS)
def test_an_answer_gives_back_the_bytes_that_were_sent(key: str) -> None:
    driver: ProtocolAdapter = PeerAdapter(BY_KEY[key], SCENE)
    assert FAULTY in driver.build_request(FAULTY, MADE, None).path
    answer = driver.parse_reply(HttpReply(200, {}, answer_of(BY_KEY[key])))
    assert answer.data is not None
    assert request_number_of(answer.data) == 77


@pytest.mark.parametrize("key", FAMOUS)
@pytest.mark.parametrize("body", [b"", b"[", b"{}", b"abc", b'{"outputs": []}'])
def test_an_answer_that_cannot_be_read_is_an_error_and_no_exception(key: str, body: bytes) -> None:
    answer = PeerAdapter(BY_KEY[key], SCENE).parse_reply(HttpReply(200, {}, body))
    assert answer.data in (None, b"")


def test_another_status_is_an_error_with_its_text() -> None:
    answer = PeerAdapter(BY_KEY["mosec"], SCENE).parse_reply(HttpReply(503, {}, b"too late"))
    assert (answer.data, answer.code, answer.text) == (None, "http_503", "too late")


def test_a_harm_is_a_number_that_no_payload_begins_with() -> None:
    numbers = {float(payload_values(MADE, FaultCommand(each, 3.0))[0]) for each in HARMS}
    assert len(numbers) == len(HARMS)
    assert min(numbers) > payload_values(make_payload(1 << 10, 1, 8), None)[0]
    assert payload_values(MADE, FaultCommand("exit", 3.0))[1] == 3.0
    assert np.array_equal(payload_values(MADE, None), np.array(MADE.values, np.float32))
