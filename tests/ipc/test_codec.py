"""Every message comes back as it went; nothing else comes through."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import types
import typing
from typing import Any

import msgpack
import pytest

from mmsup.ipc import messages
from mmsup.ipc.codec import decode, encode, pack_frame, unpack_frame
from mmsup.ipc.messages import Drop, Grant, Infer, Reply, Tensor
from mmsup.ipc.records import WireError

ALL: tuple[type[Any], ...] = (
    *messages.TO_WORKER,
    *messages.FROM_WORKER,
    *messages.TO_GATEWAY,
    *messages.FROM_GATEWAY,
    *messages.ON_LINK,
    *messages.TO_KEEPER,
    *messages.FROM_KEEPER,
)


def any_value(hint: Any, rng: random.Random) -> Any:
    if hint is Any:
        return rng.choice([None, 1, "x", [1, {"a": 2}], True])
    if dataclasses.is_dataclass(hint):
        return any_record(typing.cast("type[Any]", hint), rng)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return tuple(any_value(arguments[0], rng) for _ in range(rng.randrange(3)))
    if origin is dict:
        return {f"k{i}": any_value(arguments[1], rng) for i in range(rng.randrange(3))}
    if origin is types.UnionType:
        return None if rng.random() < 0.5 else any_value(arguments[0], rng)
    return {
        int: rng.getrandbits(62),
        float: rng.random(),
        str: "té\n" * rng.randrange(3),
        bytes: rng.randbytes(rng.randrange(9)),
        bool: rng.random() < 0.5,
    }[hint]


def any_record(kind: type[Any], rng: random.Random) -> Any:
    hints = typing.get_type_hints(kind)
    return kind(**{each.name: any_value(hints[each.name], rng) for each in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", sorted(set(ALL), key=str))
def test_each_control_message_comes_back_as_it_went(kind: type[Any]) -> None:
    rng = random.Random(kind.__name__)
    for _ in range(20):
        message = any_record(kind, rng)
        assert decode(encode(message), [kind]) == message


def any_frame(rng: random.Random) -> list[Infer | Grant | Drop | Reply]:
    return [any_record(rng.choice([Infer, Grant, Drop, Reply]), rng) for _ in range(rng.randrange(1, 5))]


def test_each_data_record_comes_back_as_it_went() -> None:
    rng = random.Random(1)
    for _ in range(300):
        frame = any_frame(rng)
        assert unpack_frame(pack_frame(frame)) == frame


def test_a_memoryview_travels_as_bytes() -> None:
    tensor = Tensor("x", "UINT8", (3,), size=3, data=memoryview(b"abc"))
    (reply,) = unpack_frame(pack_frame([Reply(1, "", "", (tensor,))]))
    assert isinstance(reply, Reply)
    assert reply.outputs[0].data == b"abc"


def test_cut_and_random_bytes_are_a_wire_error_and_nothing_else() -> None:
    rng = random.Random(2)
    for _ in range(3000):
        good = pack_frame(any_frame(rng))
        choice = rng.random()
        if choice < 0.3:
            bad = good[: rng.randrange(len(good))]
        elif choice < 0.6:
            bad = rng.randbytes(rng.randrange(64))
        else:
            at = rng.randrange(len(good))
            bad = good[:at] + rng.randbytes(1) + good[at + 1 :]
        with contextlib.suppress(WireError):
            unpack_frame(bad)
        with contextlib.suppress(WireError):
            decode(bad, ALL)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {},
        [1],
        ["Stop", 1],
        ["Nonsense"],
        ["Pong", True],
        ["Pong", "1"],
        ["Pong", 1.0],
        ["Attach", 1, "text, not bytes"],
        ["Extent", 1, 2, 3],
    ],
)
def test_a_message_of_another_shape_is_refused(raw: Any) -> None:
    with pytest.raises(WireError):
        decode(msgpack.packb(raw), ALL)


def test_a_message_that_is_not_expected_here_is_refused() -> None:
    with pytest.raises(WireError, match="not expected"):
        decode(encode(messages.Stop()), messages.TO_GATEWAY)


@pytest.mark.parametrize("bad", [b"\xc7\x00\x05", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"])
def test_ext_types_deep_nesting_and_false_lengths_are_refused(bad: bytes) -> None:
    with pytest.raises(WireError):
        unpack_frame(bad)
