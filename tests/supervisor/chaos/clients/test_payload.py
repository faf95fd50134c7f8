"""A payload says whose it is, and nothing else passes for one."""

from __future__ import annotations

import random

import pytest

from mmsup.supervisor.chaos.clients.payload import MAX_VALUES, TAG_VALUES, make_payload, request_number_of


@pytest.mark.parametrize("number", [1, 2, 1 << 20, (1 << 20) + 1, 123456789])
@pytest.mark.parametrize("size", [TAG_VALUES, 8, 16384, MAX_VALUES])
def test_a_payload_is_known_by_its_bytes(number: int, size: int) -> None:
    assert request_number_of(make_payload(3, number, size).data) == number


def test_payloads_of_other_requests_or_tenants_differ() -> None:
    mine = make_payload(1, 7, 16)
    assert mine.data != make_payload(1, 8, 16).data
    assert mine.data != make_payload(2, 7, 16).data
    assert mine.data == make_payload(1, 7, 16).data


def test_its_values_survive_json() -> None:
    assert all(value == int(value) and value < 1 << 24 for value in make_payload(9, 1 << 30, 4096).values)


def test_a_payload_with_one_byte_changed_is_nobodys() -> None:
    rng = random.Random(1)
    whole = make_payload(1, 99, 64).data
    for _ in range(200):
        at = rng.randrange(len(whole))
        harmed = whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
        assert request_number_of(harmed) is None


@pytest.mark.parametrize("data", [b"", b"123", bytes(12), b"\xff" * 64, bytes(4 * MAX_VALUES + 4)])
def test_other_bytes_are_nobodys(data: bytes) -> None:
    assert request_number_of(data) in (None, 0)
