"""A real worker process at work: tensors, output buffers, deadlines, batches, replies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import mode, write_fault_model, write_identity_onnx, write_mean_onnx
from engines.real_worker import serving
from mmsup.ipc.messages.data import Cancel, GrantBuffer, InferReply, InferSignature, TensorLocation
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.ipc.transport.codec import pack_signature, unpack_reply_signature

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)
LARGE = np.arange(100_000, dtype=np.float32)


def test_small_tensors_travel_inline_and_the_times_add_up(repository: Path, tmp_path: Path) -> None:
    with serving(write_mean_onnx(repository, "m"), tmp_path) as (worker, gateway):
        reply = gateway.request({"x": X})
        assert gateway.array(reply, "y").tolist() == [2.0]
        assert (reply.code, reply.needed_bytes, reply.batch) == ("", 0, 1)
        assert min(reply.queue_ns, reply.input_ns, reply.infer_ns, reply.output_ns) > 0
        progress = worker.progress()
        assert (progress.batches, progress.requests) == (2, 1)  # the warm-up was a run, of no request
        assert worker.page.started() == {reply.id}


def test_large_tensors_travel_in_shared_memory_both_ways(repository: Path, tmp_path: Path) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (_, gateway):
        buffer = gateway.slot(gateway.results, LARGE.nbytes)
        reply = gateway.request({"x": LARGE}, buffer=buffer)
        assert reply.locations == ((buffer.segment, buffer.offset, LARGE.nbytes),)
        assert (gateway.array(reply, "y") == LARGE).all()


@pytest.mark.parametrize("first", [0, 4096])
def test_a_buffer_that_is_too_small_is_answered_with_the_size_and_the_next_one_with_the_result(
    first: int, repository: Path, tmp_path: Path
) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (_, gateway):
        small = gateway.slot(gateway.results, first) if first else None
        asked = gateway.request({"x": LARGE}, buffer=small)
        assert (asked.code, asked.signature, asked.locations) == ("", b"", ())
        assert asked.needed_bytes == LARGE.nbytes
        buffer = gateway.slot(gateway.results, asked.needed_bytes)
        gateway.send(GrantBuffer(asked.id, buffer.segment, buffer.offset, buffer.size))
        reply = gateway.reply()
        assert reply.id == asked.id
        assert (gateway.array(reply, "y") == LARGE).all()


def test_a_pending_result_can_be_cancelled_and_expires_with_its_deadline(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_identity_onnx(repository, "m"), hang_limit_s=0.2)
    with serving(spec, tmp_path) as (_, gateway):
        asked = gateway.request({"x": LARGE})
        gateway.send(Cancel(asked.id))
        assert (cancelled := gateway.reply()).code == "cancelled"
        assert cancelled.id == asked.id
        request = gateway.infer({"x": LARGE}, deadline_s=0.3)
        gateway.send(request)
        assert gateway.reply().needed_bytes
        assert (late := gateway.reply()).code == "deadline_exceeded"
        assert late.id == request.id
        gateway.send(GrantBuffer(request.id, 0, 0, 4096), Cancel(request.id))
        assert gateway.request({"x": X}).code == ""


def test_a_request_past_its_deadline_is_not_run(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        late = gateway.infer({"x": X}, deadline_s=-1)
        gateway.send(late)
        reply = gateway.reply()
        assert (reply.id, reply.code) == (late.id, "deadline_exceeded")
        assert reply.text.startswith("Request timeout expired in the queue")
        assert gateway.array(gateway.request({"x": X}), "runs").tolist() == [1]


def test_a_cancelled_request_is_not_run_and_one_that_ran_is_answered_once(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        runs, waits = gateway.infer(mode("sleep", 0.2)), gateway.infer({"x": X})
        gateway.send(runs, waits, Cancel(waits.id))
        replies = {reply.id: reply.code for reply in (gateway.reply(), gateway.reply())}
        assert replies == {runs.id: "", waits.id: "cancelled"}
        gateway.send(Cancel(runs.id))
        assert gateway.array(gateway.request({"x": X}), "runs").tolist() == [2]


@pytest.mark.parametrize("zeromq", [False, True])
def test_replies_come_in_order_and_each_to_its_own_gateway(zeromq: bool, repository: Path, tmp_path: Path) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path, zeromq=zeromq) as (worker, one):
        other = worker.gateway(3)
        sent = set[int]()
        for _ in range(3):  # from the second time on they are known
            mine = [one.infer({"x": X + index}) for index in range(20)]
            its = [other.infer({"x": X - index}) for index in range(20)]
            one.send(*mine)
            other.send(*its)
            for index, request in enumerate(mine):
                reply = one.reply()
                assert reply.id == request.id
                assert (one.array(reply, "y") == X + index).all()
            for index, request in enumerate(its):
                reply = other.reply()
                assert reply.id == request.id
                assert (other.array(reply, "y") == X - index).all()
            sent |= {each.id for each in (*mine, *its)}
            assert worker.page.started() == sent


def test_queued_requests_share_a_batch_and_only_the_guilty_one_fails(repository: Path, tmp_path: Path) -> None:
    spec = write_fault_model(repository, "m", max_batch_size=8)
    with serving(spec, tmp_path) as (worker, gateway):

        def rows(word: str, first: float, amount: float = 0.0) -> dict[str, Array]:
            return {
                "x": np.array([[first, 1.0]], np.float32),
                "mode": np.array([[word.encode()]], dtype=np.object_),
                "amount": np.array([[amount]]),
            }

        def in_one_batch(*signature: str) -> list[InferReply]:
            """The replies to requests that came while the model was busy with another kind of request."""
            busy = gateway.infer(rows("sleep", 0, 0.2), outputs=("runs",))
            requests = [gateway.infer(rows(word, index)) for index, word in enumerate(signature)]
            gateway.send(busy, *requests)
            assert gateway.reply().id == busy.id
            replies = [gateway.reply() for _ in requests]
            assert [each.id for each in replies] == [each.id for each in requests]
            return replies

        replies = in_one_batch("ok", "ok", "ok")
        assert [each.batch for each in replies] == [3, 3, 3]
        assert [gateway.array(each, "y")[0, 0] for each in replies] == [0, 1, 2]
        progress = worker.progress()
        assert (progress.batches, progress.requests) == (2, 4)
        first, guilty, last = in_one_batch("ok", "raise", "ok")
        assert (first.code, guilty.code, last.code) == ("", "inference_failed", "")
        assert [gateway.array(each, "y")[0, 0] for each in (first, last)] == [0, 2]


def test_an_exception_fails_its_request_alone_and_the_worker_serves_on(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (worker, gateway):
        reply = gateway.request(mode("raise"))
        assert reply.code == "inference_failed"
        assert reply.text == "model 'm' failed: asked to raise, see model.py"
        assert "Traceback" in worker.log()
        assert gateway.request({"x": X}).code == ""


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("nothing", "model 'm': output 'y' is declared, but was not given"),
        ("list", "model 'm' failed: infer answered a list instead of a dict of arrays"),
        ("datatype", "model 'm': output 'y' is declared as FP32, but is FP64"),
    ],
)
def test_a_result_against_its_declaration_fails_and_names_the_output(
    word: str, text: str, repository: Path, tmp_path: Path
) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        reply = gateway.request(mode(word))
        assert (reply.code, reply.text) == ("inference_failed", text)


def test_outputs_are_those_requested(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        reply = gateway.request({"x": X}, outputs=("runs",))
        assert [each.name for each in unpack_reply_signature(reply.signature).outputs] == ["runs"]


def test_a_request_that_names_unshared_memory_is_answered_and_nothing_is_read(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        extent = gateway.extent(gateway.requests)
        plain, odd, huge = ("FP32", (5,)), ("NONE", (5,)), ("FP32", (1 << 63,))
        wrong: list[tuple[tuple[str, tuple[int, ...]], TensorLocation]] = [
            (plain, (99, 0, 20)),
            (plain, (extent.segment, extent.size - 4, 20)),
            (plain, (extent.segment, -4, 20)),
            (plain, (extent.segment, 0, 16)),
            (plain, b""),
            (plain, bytes(24)),
            (odd, bytes(20)),
            (huge, bytes(20)),
        ]
        for (datatype, shape), location in wrong:
            signature = pack_signature(InferSignature((TensorSpec("x", datatype, shape),), (), {}))
            request = replace(gateway.infer({}), signature=signature, locations=(location,))
            gateway.send(request)
            reply = gateway.reply()
            assert (reply.id, reply.code) == (request.id, "inference_failed")
        request = replace(gateway.infer({"x": LARGE}), output_buffer=(99, 0, 1 << 20))
        gateway.send(request)
        assert gateway.reply().code == "no_buffer"
        assert gateway.request({"x": X}).code == ""
