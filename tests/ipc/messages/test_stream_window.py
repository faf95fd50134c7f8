"""How far a worker may be ahead of its reader: the same count at both ends."""

from __future__ import annotations

import random

from mmsup.ipc.messages.stream_window import WINDOW_BYTES, WINDOW_PARTS, StreamWindow


def test_a_window_is_full_at_so_many_parts_or_bytes_and_has_room_again_when_some_are_taken() -> None:
    window = StreamWindow()
    for _ in range(WINDOW_PARTS):
        assert window.has_room
        window.send(1, in_buffer=False)
    assert [window.has_room] == [False]
    assert window.take(1) == 1
    assert window.has_room
    assert (window.sent, window.taken) == (WINDOW_PARTS, 1)
    large = StreamWindow()
    large.send(WINDOW_BYTES - 1, in_buffer=False)
    assert large.has_room
    large.send(WINDOW_BYTES, in_buffer=False)
    assert not large.has_room


def test_a_part_in_a_buffer_is_alone_until_it_was_taken() -> None:
    window = StreamWindow()
    window.send(0, in_buffer=True)
    assert not window.has_room
    window.take(1)
    assert window.has_room


def test_no_walk_takes_what_was_not_sent_nor_loses_bytes() -> None:
    rng = random.Random(3)
    for _ in range(200):
        window, sizes, taken = StreamWindow(), list[int](), 0
        for _ in range(40):
            if rng.random() < 0.6 and window.has_room:
                sizes.append(rng.randrange(1, WINDOW_BYTES // 4))
                window.send(sizes[-1], in_buffer=False)
            else:
                wanted = rng.randrange(0, len(sizes) + 3)
                freed = window.take(wanted)
                reached = max(min(wanted, len(sizes)), taken)
                assert freed == sum(sizes[taken:reached])
                taken = reached
            assert (window.sent, window.taken) == (len(sizes), taken)
            held = sum(sizes[taken:])
            assert window.has_room == (len(sizes) - taken < WINDOW_PARTS and held < WINDOW_BYTES)
