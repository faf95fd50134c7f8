"""What a stream sends: within the client's windows, in order, and its end after all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http2_client import Peer, body_of, headers
from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.frames import DEFAULT_FRAME_BYTES, DEFAULT_WINDOW, MAX_WINDOW, ConnectionFault


def window(size: int, stream: int = 0) -> bytes:
    return frames.window_update(stream, size)


def test_a_response_is_headers_data_and_trailers_that_end_it() -> None:
    peer = Peer()
    stream, handler = peer.opened()
    stream.send_headers(b"head")
    stream.send_data([b"abc", memoryview(b"de"), b""])
    stream.end(b"tail")
    found = peer.taken()
    assert [each.kind for each in found] == [frames.HEADERS, frames.DATA, frames.DATA, frames.HEADERS]
    assert (found[0].payload, found[0].flags) == (b"head", frames.END_HEADERS)
    assert body_of(found, 1) == b"abcde"
    assert (found[-1].payload, found[-1].flags) == (b"tail", frames.END_HEADERS | frames.END_STREAM)
    assert handler.events == ["end", "sent"]
    assert not peer.streams.open


def test_a_client_that_still_sends_is_told_that_it_need_not() -> None:
    peer = Peer()
    stream, _ = peer.opened(end=False)
    stream.end(b"tail")
    assert [(each.kind, each.payload[-1:]) for each in peer.taken()] == [
        (frames.HEADERS, b"l"),
        (frames.RST_STREAM, b"\0"),
    ]


def test_nothing_is_sent_after_the_end() -> None:
    peer = Peer()
    stream, _ = peer.opened()
    stream.end(b"")
    peer.taken()
    stream.send_headers(b"")
    stream.send_data([b"x"])
    stream.end(b"")
    stream.reset(frames.CANCEL)
    stream.grant(5)
    assert not peer.taken()


def test_data_stops_at_the_stream_s_window_and_goes_on_with_it() -> None:
    peer = Peer()
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 4}))
    stream, handler = peer.opened()
    stream.send_data([b"abcdef"])
    stream.end(b"tail")
    assert body_of(peer.taken(), 1) == b"abcd"
    assert handler.events == ["end"]
    assert body_of(peer.send(window(1, 1)), 1) == b"e"
    found = peer.send(window(10, 1))
    assert (body_of(found, 1), found[-1].payload) == (b"f", b"tail")
    assert handler.events == ["end", "sent"]


def test_data_stops_at_the_connection_s_window_and_all_streams_go_on_with_it() -> None:
    peer = Peer()
    first, _ = peer.opened(1)
    second, _ = peer.opened(3)
    first.send_data([bytes(DEFAULT_WINDOW - 1)])
    second.send_data([b"ab"])
    first.send_data([b"c"])
    found = peer.taken()
    assert len(body_of(found, 1)) == DEFAULT_WINDOW - 1
    assert body_of(found, 3) == b"a"
    found = peer.send(window(2), window(1, 1))
    assert (body_of(found, 3), body_of(found, 1)) == (b"b", b"c")


def test_trailers_need_no_window() -> None:
    peer = Peer()
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    stream, _ = peer.opened()
    stream.end(b"tail")
    assert [each.kind for each in peer.taken()] == [frames.HEADERS]


def test_a_smaller_initial_window_makes_those_of_open_streams_negative() -> None:
    peer = Peer()
    stream, _ = peer.opened()
    stream.send_data([b"abcdef"])
    peer.taken()
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 2}))  # 6 of 2 are used
    stream.send_data([b"ghi"])
    assert not peer.taken()
    assert not peer.send(window(4, 1))
    assert body_of(peer.send(window(1, 1)), 1) == b"g"
    assert body_of(peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 10})), 1) == b"hi"


def test_windows_beyond_31_bits_are_a_fault_of_the_stream_or_of_the_connection() -> None:
    peer = Peer()
    peer.opened(1)
    (reset,) = peer.send(window(MAX_WINDOW, 1))
    assert (reset.kind, reset.stream, reset.number) == (frames.RST_STREAM, 1, frames.FLOW_CONTROL_ERROR)
    with pytest.raises(ConnectionFault) as caught:
        peer.send(window(MAX_WINDOW))
    assert caught.value.code == frames.FLOW_CONTROL_ERROR
    other = Peer()
    other.opened(1)
    other.send(window(MAX_WINDOW - DEFAULT_WINDOW, 1))
    with pytest.raises(ConnectionFault) as caught:
        other.send(frames.settings({frames.INITIAL_WINDOW_SIZE: DEFAULT_WINDOW + 1}))
    assert caught.value.code == frames.FLOW_CONTROL_ERROR


def test_a_window_that_grows_by_nothing_is_a_fault() -> None:
    peer = Peer()
    peer.opened(1)
    (reset,) = peer.send(window(0, 1))
    assert (reset.stream, reset.number) == (1, frames.PROTOCOL_ERROR)
    with pytest.raises(ConnectionFault):
        peer.send(window(0))


def test_frames_are_as_large_as_the_client_takes_them() -> None:
    peer = Peer()
    peer.send(window(1 << 20), frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}))
    stream, _ = peer.opened(1)
    stream.send_data([bytes(2 * DEFAULT_FRAME_BYTES + 1)])
    assert [len(each.payload) for each in peer.taken()] == [DEFAULT_FRAME_BYTES, DEFAULT_FRAME_BYTES, 1]
    peer.send(frames.settings({frames.MAX_FRAME_SIZE: 1 << 16}))
    stream.send_data([bytes(1 << 16)])
    assert [len(each.payload) for each in peer.taken()] == [1 << 16]


def test_memory_of_what_never_goes_out_is_free_when_the_client_resets() -> None:
    peer = Peer()
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 1}))
    stream, handler = peer.opened()
    stream.send_data([b"abc"])
    peer.send(frames.rst_stream(1, frames.CANCEL))
    assert handler.events == ["end", "sent", "reset"]
    assert not peer.streams.windows.waiting


def test_memory_is_free_when_it_has_been_copied() -> None:
    """What is written has bytes of its own."""
    peer = Peer()
    stream, handler = peer.opened()
    memory = bytearray(b"abc")
    stream.send_data([memoryview(memory)])
    assert handler.events[-1] == "sent"
    memory[:] = b"zzz"
    assert body_of(peer.taken(), 1) == b"abc"


@given(
    st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6),
    st.lists(st.tuples(st.sampled_from(["stream", "connection", "initial"]), st.integers(1, 40)), max_size=30),
)
def test_whatever_the_windows_do_all_data_comes_in_order_and_never_beyond_them(
    parts: list[bytes], steps: list[tuple[str, int]]
) -> None:
    peer = Peer()
    initial, allowed, connection = 5, 5, 20
    peer.streams.windows.connection = connection
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: initial}))
    peer.send(headers(1, end=True))
    stream = peer.handlers[1].stream
    stream.send_data(parts)
    stream.end(b"tail")
    got = body_of(peer.taken(), 1)
    for kind, size in steps:
        if not peer.streams.open:
            break
        if kind == "initial":
            allowed, initial = allowed + size - initial, size
            found = peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: size}))
        else:
            allowed += size if kind == "stream" else 0
            connection += size if kind == "connection" else 0
            found = peer.send(window(size, 1 if kind == "stream" else 0))
        fresh = body_of(found, 1)
        got += fresh
        assert not fresh or len(got) <= min(allowed, connection)
        assert len(got) == len(b"".join(parts)) or len(got) >= min(allowed, connection)
    if peer.streams.open:
        got += body_of(peer.send(window(1000), window(1000, 1)), 1)
    assert got == b"".join(parts)
    assert not peer.streams.open
