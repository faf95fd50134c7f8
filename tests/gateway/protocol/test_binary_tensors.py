"""Where JSON and blobs lie in a body, and every way in which sizes can disagree."""

from __future__ import annotations

import struct

import pytest

from gateway_double import metadata
from mmsup.gateway.protocol import binary_tensors
from mmsup.gateway.protocol.inference_job import InputTensor
from mmsup.ipc.errors import CallerError


@pytest.mark.parametrize(
    "header", ["-1", "+1", "1.0", "0x10", "", "abc", "99999999999999999999", "9" * 400, "1e3", "٣"]
)
def test_a_header_that_is_no_number_of_bytes_is_refused(header: str) -> None:
    with pytest.raises(CallerError, match="no number of bytes"):
        binary_tensors.body_layout(header, 100)


def test_a_header_larger_than_the_body_is_refused_with_both_numbers() -> None:
    with pytest.raises(CallerError, match=r"is 101, but the body has 100 bytes"):
        binary_tensors.body_layout("101", 100)


def test_json_before_blobs_is_bounded() -> None:
    with pytest.raises(CallerError, match="at most"):
        binary_tensors.body_layout(str(binary_tensors.HEADER_LIMIT_BYTES + 1), 1 << 30)


def test_without_a_header_the_whole_body_is_json() -> None:
    layout = binary_tensors.body_layout(None, 100)
    assert (layout.start, layout.blobs_start, layout.space) == (0, 100, 100)


@pytest.mark.parametrize("header", [1, 63, 64, 65, 127, 1000])
def test_what_follows_the_json_is_aligned(header: int) -> None:
    layout = binary_tensors.body_layout(str(header), 5000)
    assert layout.blobs_start % 64 == 0
    assert layout.space - layout.start == 5000


def test_blobs_are_handed_out_in_order_and_must_fill_the_body() -> None:
    blobs = binary_tensors.Blobs(memoryview(bytes(20)), 10, 20)
    assert blobs.take(4, "a") == 10
    assert blobs.take(6, "b") == 14
    blobs.finish("m")


def test_too_few_bytes_name_both_numbers() -> None:
    blobs = binary_tensors.Blobs(memoryview(bytes(20)), 10, 20)
    with pytest.raises(CallerError, match="input 'A' needs 11 bytes of binary data, but only 10 of 10 are left"):
        blobs.take(11, "input 'A'")


def test_too_many_bytes_name_both_numbers() -> None:
    blobs = binary_tensors.Blobs(memoryview(bytes(20)), 10, 20)
    blobs.take(4, "input 'A'")
    with pytest.raises(CallerError, match="take 4 bytes of binary data, the body has 10"):
        blobs.finish("m")


PREFIXED = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0) + struct.pack("<I", 1) + b"c"


def test_strings_that_fill_their_bytes_pass() -> None:
    binary_tensors.check_strings(memoryview(PREFIXED), 3)
    binary_tensors.check_strings(memoryview(b""), 0)


@pytest.mark.parametrize("cut", range(1, len(PREFIXED)))
def test_strings_cut_anywhere_are_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"left|needs"):
        binary_tensors.check_strings(memoryview(PREFIXED)[:cut], 3)


def test_a_length_near_the_end_of_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="4294967295"):
        binary_tensors.check_strings(memoryview(b"\xff\xff\xff\xffab"), 1)


def _raw(body: bytes, shape: tuple[int, ...], datatype: str = "FP32", max_batch_size: int = 0) -> InputTensor:
    layout = binary_tensors.body_layout("0", len(body))
    space = memoryview(bytearray(layout.space))
    space[layout.start :] = body
    given = binary_tensors.raw_input(
        "m", metadata(("A", datatype, shape), max_batch_size=max_batch_size), space, layout
    )
    assert given.size <= len(space) - given.offset
    return given


@pytest.mark.parametrize(
    ("size", "shape", "batch", "made"),
    [
        (16, (4,), 0, (4,)),
        (16, (-1,), 0, (4,)),
        (0, (-1,), 0, (0,)),
        (48, (-1, 3), 0, (4, 3)),
        (16, (4,), 8, (1, 4)),
        (16, (-1,), 8, (1, 4)),
        (4, (), 0, ()),
    ],
)
def test_a_raw_request_gets_its_shape_from_its_length(
    size: int, shape: tuple[int, ...], batch: int, made: tuple[int, ...]
) -> None:
    given = _raw(bytes(size), shape, max_batch_size=batch)
    assert given.shape == made
    assert given.offset % 64 == 0


@pytest.mark.parametrize(
    ("size", "shape", "says"),
    [
        (15, (4,), "needs 16 bytes, the raw request has 15"),
        (17, (-1,), "a multiple of 4 bytes"),
        (16, (-1, -1), "2 dimensions vary"),
        (0, (0, -1), "a multiple of 0"),
    ],
)
def test_a_raw_request_whose_shape_cannot_be_told_is_refused(size: int, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(CallerError, match=says):
        _raw(bytes(size), shape)


@pytest.mark.parametrize(("shape", "batch", "made"), [((1,), 0, (1,)), ((-1,), 0, (1,)), ((1,), 4, (1, 1))])
def test_a_raw_string_is_its_own_element(shape: tuple[int, ...], batch: int, made: tuple[int, ...]) -> None:
    layout = binary_tensors.body_layout("0", 5)
    space = memoryview(bytearray(layout.space))
    space[layout.start :] = b"hello"
    given = binary_tensors.raw_input("m", metadata(("A", "BYTES", shape), max_batch_size=batch), space, layout)
    assert given.shape == made
    assert bytes(space[given.offset : given.offset + given.size]) == b"\x05\0\0\0hello"


def test_a_raw_request_needs_a_model_of_one_input() -> None:
    layout = binary_tensors.body_layout("0", 4)
    described = metadata(("A", "FP32", (1,)), ("B", "FP32", (1,)))
    with pytest.raises(CallerError, match="one input"):
        binary_tensors.raw_input("m", described, memoryview(bytearray(layout.space)), layout)


def test_a_raw_request_for_several_strings_is_refused() -> None:
    with pytest.raises(CallerError, match=r"shape \[1\]"):
        _raw(b"abc", (2,), "BYTES")
