from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.state.checkpoint import TEXT_LIMIT, CheckpointWriter, from_text, to_text


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    data: bytes
    numbers: tuple[float, ...] = (1.5,)


@dataclass(frozen=True, slots=True)
class OtherFact:
    name: str


class Keeper:
    """Holds what it is sent."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.sent: list[str] = []
        self.too_large: list[str] = []

    def send(self, key: str, text: str) -> None:
        self.sent.append(key)
        self.texts[key] = text

    def writer(self, **saved: object) -> CheckpointWriter:
        return CheckpointWriter(self.send, lambda key, _: self.too_large.append(key), saved)


FACT = Fact("a", b"\x00\xff")


def test_what_is_saved_is_what_is_found() -> None:
    for each in (FACT, Fact("", b"", ()), OtherFact("b")):
        assert from_text(to_text(each), (OtherFact, Fact)) == each


def test_only_a_record_that_differs_is_sent() -> None:
    keeper = Keeper()
    writer = keeper.writer()
    for _ in range(2):
        writer.save("a", FACT)
        writer.save("b", OtherFact("b"))
    writer.save("a", replace(FACT, name="c"))
    assert keeper.sent == ["a", "b", "a"]
    writer.save("b", None)
    writer.save("b", None)
    assert keeper.sent == ["a", "b", "a", "b"]
    assert keeper.texts["b"] == ""


def test_what_an_earlier_controller_saved_is_not_sent_again() -> None:
    keeper = Keeper()
    writer = keeper.writer(a=FACT)
    writer.save("a", FACT)
    assert keeper.sent == []
    writer.save("a", None)
    assert keeper.sent == ["a"]


def test_a_record_that_is_too_large_is_reported_once_and_what_was_saved_before_stays() -> None:
    keeper = Keeper()
    writer = keeper.writer()
    writer.save("a", FACT)
    for seed in range(3):
        writer.save("a", Fact("large", random.Random(seed).randbytes(TEXT_LIMIT)))
    assert (keeper.sent, keeper.too_large, writer.is_complete) == (["a"], ["a"], False)
    writer.save("a", replace(FACT, name="b"))
    assert (keeper.sent, writer.is_complete) == (["a", "a"], True)


@pytest.mark.parametrize("text", ["", "x", "not base 64 \n", "YWJj", to_text(FACT)[:-9], to_text(OtherFact("a"))])
def test_a_text_of_another_kind_is_no_record(text: str) -> None:
    with pytest.raises(WireError):
        from_text(text, (Fact,))


def test_random_text_is_no_record() -> None:
    rng = random.Random(5)
    for _ in range(500):
        with pytest.raises(WireError):
            from_text("".join(rng.choices("abcXYZ019+/=~", k=rng.randrange(1, 60))), (Fact,))
