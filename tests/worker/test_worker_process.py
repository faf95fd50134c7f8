"""A real worker process: how it loads, serves and ends."""

from __future__ import annotations

import os
import select
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import write_fault_model, write_identity_onnx, write_mean_onnx
from engines.life import PATIENCE_S, Life, serving
from mmsup.ipc import exits
from mmsup.ipc.array import Array
from mmsup.ipc.messages import WIRE_VERSION, Drop, Grant, Reply, Stage, Tensor
from mmsup.ipc.page import Activity
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)
LARGE = np.arange(100_000, dtype=np.float32)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


def mode(word: str, amount: float = 0.0, x: Array = X) -> dict[str, Array]:
    return {"x": x, "mode": np.array([word.encode()], dtype=np.object_), "amount": np.array([amount])}


# Loading.


def test_it_says_who_it_is_then_its_progress_then_its_metadata(repository: Path, tmp_path: Path) -> None:
    with Life(write_identity_onnx(repository, "m", "FP32", (-1, 3)), tmp_path) as life:
        metadata = life.ready()
        assert [type(each).__name__ for each in life.said] == ["Hello", "Stage", "Stage", "Stage", "Ready"]
        assert [each.warming for each in life.said if isinstance(each, Stage)] == [False, False, True]
        assert metadata.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
        assert life.said[0].role == "worker"
        assert (life.said[0].wire, life.said[0].instance, life.said[0].generation) == (WIRE_VERSION, 7, 1)


def test_another_wire_is_refused_with_both_versions_named(repository: Path, tmp_path: Path) -> None:
    with Life(write_identity_onnx(repository, "m"), tmp_path, wire=99) as life:
        failed = life.failed()
        assert f"wire 99, this worker wire {WIRE_VERSION}" in failed.text
        assert life.ended() == exits.LOAD_FAILED


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_load": "raise"}, "model 'm' failed: asked to raise, see model.py"),
        ({"on_import": "raise"}, "model 'm' failed: asked to raise, see model.py"),
        ({"on_load": "memory_error"}, "model 'm' ran out of memory"),
    ],
)
def test_a_load_that_raises_is_told_without_a_trace_which_goes_to_the_log(
    options: dict[str, object], text: str, repository: Path, tmp_path: Path
) -> None:
    with Life(write_fault_model(repository, "m", **options), tmp_path) as life:
        failed = life.failed()
        assert failed.text == text
        assert failed.code == "load_failed"
        assert life.ended() == exits.LOAD_FAILED
        assert "Traceback" in life.printed()


def test_a_folder_that_is_gone_is_a_failed_load(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_identity_onnx(repository, "m"), directory=str(repository / "nowhere"))
    with Life(spec, tmp_path) as life:
        assert life.failed().code == "load_failed"
        assert life.ended() == exits.LOAD_FAILED


@pytest.mark.parametrize(
    ("harm", "amount", "status"),
    [("exit", 3, 3), ("exit", 0, 0), ("sysexit", 4, 4), ("segv", 0, -signal.SIGSEGV), ("abort", 0, -signal.SIGABRT)],
)
def test_a_load_that_ends_the_process_shows_its_own_status(
    harm: str, amount: int, status: int, repository: Path, tmp_path: Path
) -> None:
    with Life(write_fault_model(repository, "m", on_load=harm, on_load_amount=amount), tmp_path) as life:
        assert life.ended() == status


def test_a_load_that_hangs_says_so_on_the_page_and_ends_by_sigterm(repository: Path, tmp_path: Path) -> None:
    with Life(write_fault_model(repository, "m", on_load="hang"), tmp_path) as life:
        while not (isinstance(said := life.hear(), Stage) and said.text.startswith("loading")):
            pass
        assert life.progress().activity is Activity.LOADING
        life.process.terminate()
        assert life.ended() == -signal.SIGTERM


def test_limits_bind_the_model(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m"), memory_bytes=512 << 20)
    with Life(spec, tmp_path, data_limit_bytes=512 << 20) as life:
        life.ready()
        gateway = life.gateway()
        reply = gateway.ask(mode("allocate", 1000))
        assert reply.code == "inference_failed"
        assert reply.text == f"model 'm' ran out of memory under its cap of {512 << 20} bytes"
        assert gateway.ask({"x": X}).code == ""
        limits = Path(f"/proc/{life.process.pid}/limits").read_text()
        assert any(line.split()[:5] == ["Max", "core", "file", "size", "0"] for line in limits.splitlines())


def test_torch_is_not_in_a_worker_that_does_not_need_it(repository: Path, tmp_path: Path) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (life, _):
        mapped = Path(f"/proc/{life.process.pid}/maps").read_text()
        assert "onnxruntime" in mapped
        assert "libtorch" not in mapped


def test_a_worker_holds_what_it_was_given_and_its_own_sockets(repository: Path, tmp_path: Path) -> None:
    with Life(write_fault_model(repository, "m"), tmp_path) as life:
        life.ready()
        held = [os.readlink(each) for each in Path(f"/proc/{life.process.pid}/fd").iterdir()]
        kinds = Counter(each.partition(":")[0] for each in held)
        assert kinds["pipe"] == 2, held  # lifeline, crash
        assert kinds["/memfd"] == 1, held  # the page's mapping
        assert kinds["socket"] == 2, held  # control, ZeroMQ's listener
        assert set(kinds) == {"pipe", "/memfd", "socket", "anon_inode", "/dev/null", str(life.output)}, held


# Serving.


def test_small_tensors_travel_inline_and_the_times_add_up(repository: Path, tmp_path: Path) -> None:
    with serving(write_mean_onnx(repository, "m"), tmp_path) as (life, gateway):
        reply = gateway.ask({"x": X})
        assert gateway.array(reply, "y").tolist() == [2.0]
        assert (reply.code, reply.need, reply.batch) == ("", 0, 1)
        assert min(reply.queue_ns, reply.input_ns, reply.infer_ns, reply.output_ns) > 0
        progress = life.progress()
        assert (progress.batches, progress.requests) == (1, 1)
        assert life.page.begun(0) == reply.id


def test_large_tensors_travel_in_shared_memory_both_ways(repository: Path, tmp_path: Path) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (_, gateway):
        grant = gateway.slot(gateway.results, LARGE.nbytes)
        reply = gateway.ask({"x": LARGE}, grant=grant)
        assert reply.outputs[0].segment == grant.segment
        assert (gateway.array(reply, "y") == LARGE).all()


@pytest.mark.parametrize("first", [0, 4096])
def test_too_small_a_grant_is_answered_with_the_need_and_the_next_grant_with_the_result(
    first: int, repository: Path, tmp_path: Path
) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (_, gateway):
        small = gateway.slot(gateway.results, first) if first else None
        asked = gateway.ask({"x": LARGE}, grant=small)
        assert (asked.code, asked.outputs) == ("", ())
        assert asked.need == LARGE.nbytes
        grant = gateway.slot(gateway.results, asked.need)
        gateway.send(Grant(asked.id, grant.segment, grant.offset, grant.size))
        reply = gateway.reply()
        assert reply.id == asked.id
        assert (gateway.array(reply, "y") == LARGE).all()


def test_a_kept_result_is_dropped_on_request_and_expires_with_its_deadline(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_identity_onnx(repository, "m"), hang_limit_s=0.2)
    with serving(spec, tmp_path) as (_, gateway):
        asked = gateway.ask({"x": LARGE})
        gateway.send(Drop(asked.id))
        assert (cancelled := gateway.reply()).code == "cancelled"
        assert cancelled.id == asked.id
        request = gateway.infer({"x": LARGE}, deadline_s=0.3)
        gateway.send(request)
        assert gateway.reply().need
        assert (late := gateway.reply()).code == "deadline_exceeded"
        assert late.id == request.id
        gateway.send(Grant(request.id, 0, 0, 4096), Drop(request.id))
        assert gateway.ask({"x": X}).code == ""


def test_a_request_past_its_deadline_is_not_run(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        late = gateway.infer({"x": X}, deadline_s=-1)
        gateway.send(late)
        reply = gateway.reply()
        assert (reply.id, reply.code) == (late.id, "deadline_exceeded")
        assert reply.text.startswith("Request timeout expired in the queue")
        assert gateway.array(gateway.ask({"x": X}), "runs").tolist() == [1]


def test_a_dropped_request_is_not_run_and_one_that_ran_is_answered_once(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        runs, waits = gateway.infer(mode("sleep", 0.2)), gateway.infer({"x": X})
        gateway.send(runs, waits, Drop(waits.id))
        replies = {reply.id: reply.code for reply in (gateway.reply(), gateway.reply())}
        assert replies == {runs.id: "", waits.id: "cancelled"}
        gateway.send(Drop(runs.id))
        assert gateway.array(gateway.ask({"x": X}), "runs").tolist() == [2]


def test_answers_come_in_order_and_each_to_its_own_gateway(repository: Path, tmp_path: Path) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (life, one):
        other = life.gateway(3)
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
        assert life.page.begun(3) == its[-1].id


def test_waiting_requests_share_a_run_and_only_the_guilty_of_a_batch_fails(repository: Path, tmp_path: Path) -> None:
    spec = write_fault_model(repository, "m", max_batch_size=8)
    with serving(spec, tmp_path) as (life, gateway):

        def rows(word: str, first: float, amount: float = 0.0) -> dict[str, Array]:
            return {
                "x": np.array([[first, 1.0]], np.float32),
                "mode": np.array([[word.encode()]], dtype=np.object_),
                "amount": np.array([[amount]]),
            }

        def in_company(*words: str) -> list[Reply]:
            """The replies to requests that came while the model was busy with another kind of request."""
            busy = gateway.infer(rows("sleep", 0, 0.2), outputs=("runs",))
            requests = [gateway.infer(rows(word, index)) for index, word in enumerate(words)]
            gateway.send(busy, *requests)
            assert gateway.reply().id == busy.id
            replies = [gateway.reply() for _ in requests]
            assert [each.id for each in replies] == [each.id for each in requests]
            return replies

        replies = in_company("ok", "ok", "ok")
        assert [each.batch for each in replies] == [3, 3, 3]
        assert [gateway.array(each, "y")[0, 0] for each in replies] == [0, 1, 2]
        progress = life.progress()
        assert (progress.batches, progress.requests) == (2, 4)
        first, guilty, last = in_company("ok", "raise", "ok")
        assert (first.code, guilty.code, last.code) == ("", "inference_failed", "")
        assert [gateway.array(each, "y")[0, 0] for each in (first, last)] == [0, 2]


def test_an_exception_fails_its_request_alone_and_costs_no_life(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gateway):
        reply = gateway.ask(mode("raise"))
        assert reply.code == "inference_failed"
        assert reply.text == "model 'm' failed: asked to raise, see model.py"
        assert "Traceback" in life.printed()
        assert gateway.ask({"x": X}).code == ""


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("nothing", "model 'm': output 'y' is declared, but was not given"),
        ("list", "model 'm' failed: infer answered a list instead of a dict of arrays"),
        ("datatype", "model 'm': output 'y' is declared as FP32, but is FP64"),
    ],
)
def test_an_answer_that_breaks_its_declaration_fails_and_names_the_output(
    word: str, text: str, repository: Path, tmp_path: Path
) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        reply = gateway.ask(mode(word))
        assert (reply.code, reply.text) == ("inference_failed", text)


def test_outputs_are_those_asked_for(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        assert [each.name for each in gateway.ask({"x": X}, outputs=("runs",)).outputs] == ["runs"]


def test_a_request_that_names_unshared_memory_is_answered_and_nothing_is_read(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (_, gateway):
        extent = gateway.extent(gateway.requests)
        for tensor in (
            Tensor("x", "FP32", (5,), 99, 0, 20),
            Tensor("x", "FP32", (5,), extent.segment, extent.size - 4, 20),
            Tensor("x", "FP32", (5,), extent.segment, -4, 20),
            Tensor("x", "FP32", (5,), extent.segment, 0, 16),
            Tensor("x", "NONE", (5,), -1, 0, 20, bytes(20)),
            Tensor("x", "FP32", (5,), -1, 0, 20),
            Tensor("x", "FP32", (1 << 63,), -1, 0, 20, bytes(20)),
        ):
            request = replace(gateway.infer({}), inputs=(tensor,))
            gateway.send(request)
            reply = gateway.reply()
            assert (reply.id, reply.code) == (request.id, "internal")
        grant = Grant(0, 99, 0, 1 << 20)
        request = replace(gateway.infer({"x": LARGE}), grant_segment=grant.segment, grant_size=grant.size)
        gateway.send(request)
        assert gateway.reply().code == "internal"
        assert gateway.ask({"x": X}).code == ""


# Gateways.


def test_an_identity_that_was_not_attached_is_not_served(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gateway):
        stranger = life.gateway(5, attached=False)
        stranger.send(stranger.infer(mode("exit")))
        gateway.end.send(b"\x93nothing")  # a frame that is none
        assert gateway.ask({"x": X}).code == ""
        assert stranger.reply_within(0) is None
        assert "not attached" in life.printed()
        stranger.attach()
        assert stranger.ask({"x": X}).code == ""


def test_a_gateway_attached_again_goes_on_with_the_memory_it_has(repository: Path, tmp_path: Path) -> None:
    """As after a restart of the brain, when the gateway closes the pair that it does not need."""
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (_, gateway):
        grant = gateway.slot(gateway.results, LARGE.nbytes)
        assert gateway.ask({"x": LARGE}, grant=grant).code == ""
        second = gateway.attach_again()
        reply = gateway.ask({"x": LARGE}, grant=grant)
        assert (gateway.array(reply, "y") == LARGE).all()
        second.close()
        reply = gateway.ask({"x": LARGE}, grant=grant)
        assert (gateway.array(reply, "y") == LARGE).all()


def test_a_gateway_linked_anew_counts_its_memory_anew(repository: Path, tmp_path: Path) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (life, old):
        old.ask({"x": LARGE}, grant=old.slot(old.results, LARGE.nbytes))
        old.close()
        new = life.gateway()
        reply = new.ask({"x": LARGE + 1}, grant=new.slot(new.results, LARGE.nbytes))
        assert (new.array(reply, "y") == LARGE + 1).all()


def test_a_gateway_that_goes_takes_its_requests_and_its_memory_with_it(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gone):
        stays = life.gateway(1)
        gone.ask({"x": LARGE})
        gone.send(gone.infer(mode("sleep", 0.2)), *[gone.infer({"x": X}) for _ in range(5)])
        while life.progress().activity is not Activity.BUSY:
            select.select([], [], [], 0.001)
        gone.close()
        assert stays.array(stays.ask({"x": X}), "runs").tolist() == [3]
        maps = Path(f"/proc/{life.process.pid}/maps").read_text()
        assert "mmsup-arena" not in maps


def test_descriptors_and_mappings_do_not_grow_with_gateways(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, stays):
        folder = Path(f"/proc/{life.process.pid}/fd")

        def visit(place: int) -> None:
            guest = life.gateway(place)
            guest.ask({"x": LARGE}, grant=guest.slot(guest.results, LARGE.nbytes))
            guest.close()

        visit(1)
        stays.ask({"x": X})
        before = len(list(folder.iterdir()))
        for place in range(2, 12):
            visit(place)
        stays.ask({"x": X})
        assert len(list(folder.iterdir())) <= before


# Ending.


def test_stop_finishes_what_is_queued_then_unloads_and_exits_with_zero(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gateway):
        requests = [gateway.infer(mode("sleep", 0.1)), *[gateway.infer({"x": X}) for _ in range(10)]]
        gateway.send(*requests)
        while life.progress().activity is not Activity.BUSY:
            select.select([], [], [], 0.001)
        life.stop()
        assert [gateway.reply().id for _ in requests] == [each.id for each in requests]
        assert life.ended() == exits.DONE
        assert "unloaded" in life.printed()
        assert life.progress().activity is Activity.STOPPING


@pytest.mark.parametrize(
    ("word", "amount", "status"),
    [
        ("exit", 3, 3),
        ("exit", 0, 0),
        ("sysexit", 5, 5),
        ("sysexit", 0, 0),
        ("segv", 0, -signal.SIGSEGV),
        ("abort", 0, -signal.SIGABRT),
        ("fpe", 0, -signal.SIGFPE),
        ("bus", 0, -signal.SIGBUS),
        ("kill", 0, -signal.SIGKILL),
    ],
)
def test_a_model_that_ends_its_process_shows_its_own_status_and_what_had_begun(
    word: str, amount: float, status: int, repository: Path, tmp_path: Path
) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gateway):
        fatal, after = gateway.infer(mode(word, amount)), gateway.infer({"x": X})
        gateway.send(fatal, after)
        assert life.ended() == status
        assert life.page.begun(0) == fatal.id
        assert life.progress().activity is Activity.BUSY
        os.set_blocking(life.crash, False)
        crashed = os.read(life.crash, 100) if status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE) else b"Fatal"
        assert crashed.startswith(b"Fatal")


@pytest.mark.parametrize("word", ["hang", "spin", "deadlock"])
def test_a_hang_shows_on_the_page_with_the_time_of_its_beginning(word: str, repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gateway):
        request = gateway.infer(mode(word))
        gateway.send(request)
        while life.page.begun(0) != request.id:
            select.select([], [], [], 0.001)
        seen = life.progress()
        select.select([], [], [], 0.2)
        now = life.progress()
        assert (now.activity, now.since_ns, now.beat_ns) == (Activity.BUSY, seen.since_ns, seen.beat_ns)
        life.process.send_signal(signal.SIGQUIT)  # its stacks, without its help
        deadline = PATIENCE_S
        while "model.py" not in life.printed() and deadline > 0:
            select.select([], [], [], 0.01)
            deadline -= 0.01
        assert "in harm" in life.printed()


def test_an_idle_worker_beats_and_a_stopped_one_does_not(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m"), hang_limit_s=0.2)
    with serving(spec, tmp_path) as (life, gateway):
        gateway.ask({"x": X})
        first = life.progress()
        while life.progress().beat_ns == first.beat_ns:
            select.select([], [], [], 0.01)
        assert life.progress().activity is Activity.IDLE
        life.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, life.process.pid, os.WSTOPPED)
        stopped = life.progress().beat_ns
        select.select([], [], [], 0.3)
        assert life.progress().beat_ns == stopped
        life.process.send_signal(signal.SIGCONT)
        assert gateway.ask({"x": X}).code == ""


@pytest.mark.parametrize("when", ["loading", "idle", "at once"])
def test_a_worker_whose_keeper_is_gone_goes_too(when: str, repository: Path, tmp_path: Path) -> None:
    options = {"on_load": "sleep", "on_load_amount": 0.3} if when == "loading" else {}
    with Life(write_fault_model(repository, "m", **options), tmp_path) as life:
        if when != "at once":
            while not isinstance(life.hear(), Stage):
                pass
        if when == "idle":
            life.ready()
        os.close(life.lifeline)
        life.lifeline = -1
        assert life.ended() == exits.ORPHANED


def test_a_keeper_that_closes_the_control_channel_ends_the_worker(repository: Path, tmp_path: Path) -> None:
    with Life(write_fault_model(repository, "m"), tmp_path) as life:
        life.ready()
        life.control.close()
        assert life.ended() == exits.ORPHANED
