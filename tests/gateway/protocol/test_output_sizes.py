"""Sizes of output buffers: declared where possible, otherwise estimated."""

from __future__ import annotations

import pytest

from mmsup.gateway.protocol.output_sizes import SPAN_RESULTS, OutputSizeEstimator, declared_bytes, used_bytes
from mmsup.ipc.memory.allocator import padded_size
from mmsup.ipc.specs import INLINE_TENSORS, Metadata, TensorSpec


def metadata(*outputs: TensorSpec, batch: int = 0) -> Metadata:
    return Metadata("p", batch, (), outputs)


BIG = TensorSpec("big", "FP32", (2000,))
SMALL = TensorSpec("small", "FP32", (4,))
OPEN = TensorSpec("open", "FP32", (-1,))


@pytest.mark.parametrize(
    ("described", "wanted", "batch", "size"),
    [
        (metadata(BIG), (), 1, 8000),
        (metadata(BIG, SMALL), (), 1, 8000),
        (metadata(SMALL), (), 1, 0),
        (metadata(BIG, batch=8), (), 3, 24000),
        (metadata(BIG, OPEN), ("big",), 1, 8000),
        (metadata(BIG, OPEN), (), 1, None),
        (metadata(TensorSpec("s", "BYTES", (1,))), (), 1, None),
    ],
)
def test_declared_outputs_have_a_known_size(
    described: Metadata, wanted: tuple[str, ...], batch: int, size: int | None
) -> None:
    assert declared_bytes(described, wanted, batch) == (None if size is None else padded_size(size))


def test_undeclared_sizes_are_estimated_for_each_version() -> None:
    learned = OutputSizeEstimator()
    assert learned.largest(("m", "1")) == 0
    learned.observe(("m", "1"), 9000)
    learned.observe(("m", "1"), 5000)
    assert learned.largest(("m", "1")) == 9000
    assert learned.largest(("m", "2")) == 0


@pytest.mark.parametrize("before", range(0, 2 * SPAN_RESULTS, 7))
def test_one_huge_result_is_remembered_for_a_while(before: int) -> None:
    learned, key = OutputSizeEstimator(), ("m", "1")
    for _ in range(before):
        learned.observe(key, 100)
    learned.observe(key, 1 << 30)
    for _ in range(SPAN_RESULTS):
        assert learned.largest(key) == 1 << 30
        learned.observe(key, 100)
    for _ in range(SPAN_RESULTS):
        learned.observe(key, 100)
    assert learned.largest(key) == 100


def test_a_large_result_that_recurs_is_never_forgotten() -> None:
    learned, key = OutputSizeEstimator(), ("m", "1")
    for each in range(20 * SPAN_RESULTS):
        learned.observe(key, 5000 if each % SPAN_RESULTS == 0 else 1)
        assert learned.largest(key) == 5000


def test_inline_outputs_need_no_buffer() -> None:
    assert used_bytes([b"abc", (1, 0, 5000)]) == padded_size(5000)


def test_outputs_beyond_the_inline_count_need_a_buffer() -> None:
    outputs = [TensorSpec(f"y{number}", "UINT8", (3,)) for number in range(INLINE_TENSORS + 2)]
    assert declared_bytes(metadata(*outputs), (), 1) == 2 * padded_size(3)


def test_results_that_needed_no_buffer_make_a_large_one_forgotten() -> None:
    sizes = OutputSizeEstimator()
    sizes.observe_inline(("m", "1"), 1)
    sizes.observe(("m", "1"), 5000)
    sizes.observe_inline(("m", "1"), SPAN_RESULTS - 1)
    assert sizes.largest(("m", "1")) == 5000
    sizes.observe_inline(("m", "1"), SPAN_RESULTS + 1)
    assert sizes.largest(("m", "1")) == 0
