"""Which requests have the same key."""

from __future__ import annotations

from typing import Any

import pytest

from mmsup.gateway.caching.cache_key import cache_key
from mmsup.gateway.protocol.request_fingerprint import Tensor

A, B = Tensor("a", "FP32", (2,), b"12345678"), Tensor("b", "UINT8", (1,), b"x")
GIVEN: dict[str, Any] = {
    "model": ("m", "1"),
    "workers": [(1, 1), (2, 1)],
    "inputs": [A, B],
    "outputs": ["y", "z"],
    "parameters": {"k": 1, "l": "x"},
}


def test_neither_the_order_of_tensors_nor_the_memory_they_are_in_matters() -> None:
    again = [B, Tensor("a", "FP32", (2,), memoryview(bytearray(b"12345678")))]
    other = {"workers": [(2, 1), (1, 1)], "inputs": again, "outputs": ["z", "y"], "parameters": {"l": "x", "k": 1}}
    assert cache_key(**{**GIVEN, **other}) == cache_key(**GIVEN)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": ("n", "1")},
        {"model": ("m", "2")},
        {"model": ("m1", "")},
        {"workers": [(1, 1)]},
        {"workers": [(1, 2), (2, 1)]},
        {"inputs": [A]},
        {"inputs": [Tensor("a", "FP32", (2,), b"12345679"), B]},
        {"inputs": [Tensor("a", "FP32", (1, 2), b"12345678"), B]},
        {"inputs": [Tensor("a", "INT32", (2,), b"12345678"), B]},
        {"inputs": [Tensor("a", "FP32", (2,), b"1234567"), Tensor("b", "UINT8", (1,), b"8x")]},
        {"outputs": ["y"]},
        {"outputs": []},
        {"parameters": {}},
        {"parameters": {"k": True, "l": "x"}},
        {"parameters": {"k": 1.0, "l": "x"}},
        {"parameters": {"k": "1", "l": "x"}},
    ],
)
def test_all_that_may_change_the_result_changes_the_key(changed: dict[str, Any]) -> None:
    assert cache_key(**{**GIVEN, **changed}) != cache_key(**GIVEN)
