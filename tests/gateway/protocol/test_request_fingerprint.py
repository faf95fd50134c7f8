"""Equal inputs have equal fingerprints however they were sent; other inputs have others."""

from __future__ import annotations

import pytest

from mmsup.gateway.protocol.inference_job import InferenceJob, InputTensor
from mmsup.gateway.protocol.request_fingerprint import Tensor, fingerprint, received_tensors, sent_tensors, total_bytes
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.data import Infer

X, M = Tensor("x", "UINT8", (2, 3), b"abcdef"), Tensor("mode", "BYTES", (1,), b"\2\0\0\0ok")
DIGEST = fingerprint("m", "1", [X, M])


def test_neither_the_order_of_inputs_nor_the_kind_of_memory_makes_a_difference() -> None:
    assert fingerprint("m", "1", [M, Tensor("x", "UINT8", (2, 3), memoryview(b"abcdef"))]) == DIGEST


@pytest.mark.parametrize(
    ("model", "version", "inputs"),
    [
        ("n", "1", [X, M]),
        ("m", "2", [X, M]),
        ("m1", "", [X, M]),
        ("m", "1", [X]),
        ("m", "1", [Tensor("y", "UINT8", (2, 3), b"abcdef"), M]),
        ("m", "1", [Tensor("x", "INT8", (2, 3), b"abcdef"), M]),
        ("m", "1", [Tensor("x", "UINT8", (3, 2), b"abcdef"), M]),
        ("m", "1", [Tensor("x", "UINT8", (2, 3), b"abcdeg"), M]),
        ("m", "1", [Tensor("x", "UINT8", (2, 3), b"abcde"), Tensor("mode", "BYTES", (1,), b"f\2\0\0\0ok")]),
    ],
)
def test_any_other_name_type_shape_or_byte_changes_the_fingerprint(
    model: str, version: str, inputs: list[Tensor]
) -> None:
    assert fingerprint(model, version, inputs) != DIGEST


def test_a_request_has_the_same_fingerprint_received_and_sent() -> None:
    inputs = [InputTensor("x", "UINT8", (2, 3), 2, 6), InputTensor("mode", "BYTES", (1,), data=b"\2\0\0\0ok")]
    received = received_tensors(inputs, memoryview(b"..abcdef"))
    slot = Slot(7, 64, 128, memoryview(bytes(10) + b"abcdef" + bytes(112)), SlotState.SENT)
    other = Slot(8, 64, 128, memoryview(bytes(128)), SlotState.SENT)
    sent = Infer(1, InferenceJob(inputs, ["y"], {"beam": 4}).packed_signature(), 0, None, ((7, 74, 6), b"\2\0\0\0ok"))
    assert fingerprint("m", "1", received) == fingerprint("m", "1", sent_tensors(sent, [other, slot])) == DIGEST
    assert total_bytes(received) == 12
