from __future__ import annotations

import random
import string

import pytest

from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.config.units import DURATION_LIMIT_S, SIZE_LIMIT, duration, size, size_text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512MiB", 512 << 20),
        ("4GiB", 4 << 30),
        ("1.5GiB", 3 << 29),
        ("64kB", 64_000),
        ("64KB", 64_000),
        ("2 GB", 2 * 10**9),
        (" 7B ", 7),
        ("123", 123),
        (123, 123),
        (0, 0),
        (16.0, 16),
        (SIZE_LIMIT, SIZE_LIMIT),
    ],
)
def test_a_size_is_a_number_and_its_unit(text: object, size_bytes: int) -> None:
    assert size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "4 gigs",
        "4G",
        "4g",
        "",
        "MiB",
        "-1",
        "-1MiB",
        "1e9",
        "1_000",
        "٣MiB",
        "1MiBs",
        "1.0001B",
        "0.3KiB",
        "9" * 40,
        "99999TiB" * 2,
        "9999999TiB",
        None,
        True,
        [],
        {},
        -1,
        1.5,
        float("nan"),
        float("inf"),
        SIZE_LIMIT + 1,
    ],
)
def test_what_is_no_size_is_refused_with_the_value_named(text: object) -> None:
    with pytest.raises(InvalidValue) as wrong:
        size(text)
    assert not isinstance(text, str) or f'"{text}' in str(wrong.value)


def test_the_words_about_four_gigs_are_those_of_the_house() -> None:
    with pytest.raises(InvalidValue, match=r'^"4 gigs" is not a size'):
        size("4 gigs")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("500ms", 0.5),
        ("5min", 300.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1.5d", 129600.0),
        (3, 3.0),
        ("0", 0),
    ],
)
def test_a_duration_is_a_number_and_its_unit(text: object, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["soon", "1 year", "5M", "30S", "-1s", "1m30s", "", None, False, [], float("inf"), float("nan"), "400d"]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(InvalidValue):
        duration(text)


def test_whatever_is_written_is_a_size_or_wrong_and_never_anything_else() -> None:
    chance = random.Random(20)
    letters = string.ascii_letters + string.digits + " .-+_e٣\0"
    for _ in range(5000):
        text = "".join(chance.choices(letters, k=chance.randrange(12)))
        for read, limit in ((size, SIZE_LIMIT), (duration, DURATION_LIMIT_S)):
            try:
                value = read(text)
            except InvalidValue:
                continue
            assert 0 <= value <= limit
            assert read(value) == value, "what was read is valid again, and means the same"


@pytest.mark.parametrize("text", ["512MiB", "4GiB", "1.5KiB", "7B", "2TiB"])
def test_a_size_for_people_is_read_back_as_the_same(text: str) -> None:
    assert size_text(size(text)) == text
