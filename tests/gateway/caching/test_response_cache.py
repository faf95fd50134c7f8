"""What the response cache keeps, and what goes when it is full."""

from __future__ import annotations

import random

from mmsup.gateway.caching.response_cache import ENTRY_BYTES, OUTPUT_BYTES, ResponseCache
from mmsup.gateway.protocol.inference_job import OutputTensor

ROOM = ENTRY_BYTES + OUTPUT_BYTES + 2 + 1000
"""Of an entry with one output, `y`, of 1000 bytes."""


def output(data: bytes) -> list[OutputTensor]:
    return [OutputTensor("y", "UINT8", (len(data),), memoryview(data))]


def test_what_was_kept_is_found_as_it_was_though_its_memory_is_used_for_others() -> None:
    cache, memory = ResponseCache(1 << 20), bytearray(b"abc")
    assert cache.put(b"k", [OutputTensor("y", "UINT8", (3,), memoryview(memory))])
    memory[:] = b"xyz"
    (found,) = cache.get(b"k") or ()
    assert (found.name, found.datatype, found.shape, found.data) == ("y", "UINT8", (3,), b"abc")
    assert cache.get(b"other") is None


def test_the_one_that_was_not_used_for_longest_goes_first() -> None:
    cache = ResponseCache(2 * ROOM)
    for key in (b"1", b"2"):
        assert cache.put(key, output(bytes(1000)))
    assert cache.get(b"1") is not None
    assert cache.put(b"3", output(bytes(1000)))
    assert [cache.get(key) is not None for key in (b"1", b"2", b"3")] == [True, False, True]


def test_what_is_larger_than_the_whole_is_not_kept_and_pushes_nothing_out() -> None:
    cache = ResponseCache(ROOM)
    assert cache.put(b"1", output(bytes(1000)))
    assert not cache.put(b"2", output(bytes(1001)))
    assert cache.get(b"1") is not None
    assert not ResponseCache(0).put(b"1", output(b""))


def test_the_bytes_are_never_more_than_the_limit_and_are_those_of_what_is_kept() -> None:
    chance, cache, kept = random.Random(5), ResponseCache(50_000), dict[bytes, int]()
    for _ in range(3000):
        key, size = str(chance.randrange(60)).encode(), chance.randrange(30_000)
        if cache.put(key, output(bytes(size))):
            kept[key] = size
        kept = {each: kept[each] for each in kept if cache.get(each) is not None}
        assert cache.used_bytes == sum(ROOM - 1000 + each for each in kept.values()) <= 50_000
        assert len(cache) == len(kept)
