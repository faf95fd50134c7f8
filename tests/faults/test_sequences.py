"""Sequences as clients see them, and what befalls them."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.build import write_python
from harness.bystander import Bystander
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.rpc_calls import Replies, connected, tensor
from harness.server import Json, Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow

HOLD = 13
"""An input for which the model waits until the file `go` is there."""
CODE = """
import os, time
import numpy as np

class Model:
    def load(self, context):
        self.go = os.path.join(context.directory, "go")

    def infer(self, inputs, sequences):
        (sequence,) = sequences
        value = int(inputs["x"][0])
        while value == 13 and not os.path.exists(self.go):
            time.sleep(0.005)
        if value < 0:
            raise ValueError("negative")
        total = sequence.state["total"] = sequence.state.get("total", FIRST) + value
        return {"y": np.array([total], np.int32)}
"""
CALLER = """
class Model:
    def load(self, context):
        self.context = context

    def infer(self, inputs):
        x = int(inputs["x"][0])
        place = {"sequence_id": 77, "sequence_start": x == 1, "sequence_end": x == 3}
        return {"y": self.context.infer("sums", {"x": inputs["x"]}, parameters=place)["y"]}
"""
"""It calls `sums` with one sequence: its requests are 1, 2 and 3."""
ENSEMBLE = """
platform: "ensemble"
input [{ name: "x" data_type: TYPE_INT32 dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_INT32 dims: [ 1 ] }]
ensemble_scheduling { step [{
  model_name: "sums" model_version: -1
  input_map { key: "x" value: "x" }
  output_map { key: "y" value: "y" }
}] }
"""
EXAMPLES = ("accumulator", "simple_sequence", "simple_dyna_sequence", "simple_string_dyna_sequence")
ROOT = Path(__file__).parents[2]
X, Y = TensorSpec("x", "INT32", (1,)), TensorSpec("y", "INT32", (1,))
PLAIN = {"sequences": {"strategy": "oldest", "idle": "60s"}}


def write_sums(repository: Path, name: str, **options: Any) -> None:  # of mmsup.yaml
    """A model that adds up what each sequence has sent."""
    write_python(repository, name, CODE.replace("FIRST", "0"), (X,), (Y,), 0, {**PLAIN, **options})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = bystander_repository(tmp_path_factory.mktemp("models"))
    write_sums(home, "sums")
    write_sums(home, "pair", instances=2, sequences={"idle": "60s"})
    write_sums(home, "brief", sequences={"idle": "300ms"})
    write_python(home, "caller", CALLER, (X,), (Y,))
    (home / "whole" / "1").mkdir(parents=True)
    (home / "whole" / "config.pbtxt").write_text(ENSEMBLE)
    for each in EXAMPLES:
        shutil.copytree(ROOT / "examples" / "sequences" / each, home / each)
    with serving(home, "--gateways", "2") as made:
        yield made
        everyone = server_processes(made)
        assert made.stop() == 0, made.log()
        assert_gone(made, everyone)


def call(
    server: Server,
    model: str,
    number: int | str,
    x: int,
    flags: str = "",
    **parameters: Any,  # of the request
) -> tuple[int, Any]:
    """One request over a connection of its own, so through any gateway; status, and the sum or the error. `flags`: s
    for START, e for END."""
    given = {"sequence_id": number, "sequence_start": "s" in flags, "sequence_end": "e" in flags, **parameters}
    tensors = [{"name": "x", "datatype": "INT32", "shape": [1], "data": [x]}]
    http = server.http()
    try:
        status, reply = http.json(
            "POST", f"/v2/models/{model}/infer", {"parameters": given, "inputs": tensors, "outputs": []}
        )
    finally:
        http.close()
    return status, reply["outputs"][0]["data"][0] if status == 200 else reply


class Call(threading.Thread):
    """The same in a thread."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__()
        self._arguments, self._more = arguments, more
        self.outcome: tuple[int, Any] = (0, "not answered")
        self.start()

    def run(self) -> None:
        self.outcome = call(*self._arguments, **self._more)

    def result(self) -> tuple[int, Any]:
        self.join(30)
        return self.outcome


def test_each_sequence_has_its_own_state_through_whatever_gateway_its_requests_come(server: Server) -> None:
    numbers: Sequence[int | str] = (1, 2, "1", "a b", (1 << 64) - 1)
    for at, number in enumerate(numbers):
        assert call(server, "sums", number, 10 * at, "s") == (200, 10 * at)
    for step in (1, 2):
        for at, number in enumerate(numbers):
            assert call(server, "sums", number, 1) == (200, 10 * at + step)
    assert server.gauge("mmsup_worker_sequences", model="sums") == len(numbers)
    for at, number in enumerate(numbers):
        assert call(server, "sums", number, 1, "e") == (200, 10 * at + 3)
    assert server.gauge("mmsup_worker_sequences", model="sums") == 0
    assert call(server, "sums", 1, 1)[0] == 400, "it has ended"


def test_requests_of_a_stream_that_wait_for_no_answer_run_in_order(server: Server) -> None:
    replies = Replies()
    with connected(server) as client:
        client.start_stream(replies)
        for step in range(8):
            for number in (21, "s"):
                client.async_stream_infer(
                    "sums",
                    [tensor("x", "INT32", np.array([step], np.int32))],
                    request_id=f"{number}_{step}",
                    sequence_id=number,
                    sequence_start=step == 0,
                    sequence_end=step == 7,
                )
        found: dict[str, list[int]] = {"21": [], "s": []}
        for _ in range(16):
            result, error = replies.next()
            assert error is None, error
            found[result.get_response().id.partition("_")[0]].append(int(result.as_numpy("y")[0]))
    assert found == {"21": [0, 1, 3, 6, 10, 15, 21, 28], "s": [0, 1, 3, 6, 10, 15, 21, 28]}


@pytest.mark.parametrize(
    ("model", "number", "expected"),
    [
        ("accumulator", 71, [0, 1, 3, 6]),
        ("simple_sequence", 71, [1, 1, 2, 3]),
        ("simple_dyna_sequence", 71, [1, 1, 2, 3 + 71]),
        ("simple_string_dyna_sequence", "71", [0, 1, 3, 6 + 71]),
    ],
)
def test_examples_keep_their_sequences_apart_where_these_share_batches(
    server: Server, model: str, number: int | str, expected: list[int]
) -> None:
    beside = [number * 10, number * 100] if isinstance(number, int) else ["710", "7100"]
    replies = Replies()
    with connected(server) as client:
        client.start_stream(replies)
        for step in range(4):
            for each in (number, *beside):
                client.async_stream_infer(
                    model,
                    [tensor("INPUT", "INT32", np.array([[step]], np.int32))],
                    request_id=str(each),
                    sequence_id=each,
                    sequence_start=step == 0,
                    sequence_end=step == 3,
                )
        found: dict[str, list[int]] = {}
        for _ in range(12):
            result, error = replies.next()
            assert error is None, error
            found.setdefault(result.get_response().id, []).append(int(result.as_numpy("OUTPUT")[0, 0]))
    assert found[str(number)] == expected
    assert all(each[:3] == expected[:3] for each in found.values())


def test_a_model_calls_another_one_with_a_sequence(server: Server) -> None:
    http = server.http()
    found = [http.infer("caller", x=("INT32", [1], [x]))[1] for x in (1, 2, 3)]
    http.close()
    assert [each["outputs"][0]["data"] for each in found] == [[1], [3], [6]]


def test_an_ensemble_carries_the_sequence_on_to_its_steps(server: Server) -> None:
    found = [call(server, "whole", 81, 2, flags) for flags in ("s", "", "e")]
    assert found == [(200, 2), (200, 4), (200, 6)]
    status, error = call(server, "whole", 81, 2)
    assert (status, error["code"]) == (400, "sequence_unknown")
    assert "inference request for sequence 81 to model 'sums' must specify the START flag" in error["error"]


def test_what_does_not_belong_to_a_sequence_is_refused_and_says_what_to_do(server: Server) -> None:
    start = "must specify the START flag on the first request of the sequence"
    for number in (5, "x"):
        status, error = call(server, "sums", number, 1)
        assert (status, error["code"], error["retryable"]) == (400, "sequence_unknown", False)
        assert error["error"] == f"inference request for sequence {number} to model 'sums' {start}"
    status, error = call(server, "sums", 0, 1, "s")
    assert (status, error["code"]) == (400, "bad_request")
    assert "must specify a non-zero or non-empty correlation ID" in error["error"]
    assert call(server, BYSTANDER, 5, 1)[1]["error"].startswith("inference input"), "it takes the id, not the datatype"


def test_a_sequence_takes_any_free_slot_and_waits_where_there_is_none(server: Server) -> None:
    assert call(server, "pair", 1, 1, "s") == (200, 1)
    assert call(server, "pair", 2, 1, "s") == (200, 1), "two workers have a slot each, whatever the ids are"
    status, error = call(server, "pair", 3, 1, "s", timeout=100_000)
    assert (status, error["code"]) == (504, "deadline_exceeded")
    assert call(server, "pair", 3, 1)[0] == 400, "it has never begun"
    waiting = Call(server, "pair", 4, 1, "se")
    eventually(lambda: server.gauge("mmsup_worker_sequences", model="pair") == 3, "one waits")
    for number in (1, 2):
        assert call(server, "pair", number, 1, "e") == (200, 2)
    assert waiting.result() == (200, 1)


def test_a_start_begins_a_live_sequence_anew(server: Server) -> None:
    for model in ("sums", "pair"):
        assert call(server, model, 9, 5, "s") == (200, 5)
        assert call(server, model, 9, 1, "s") == (200, 1)
        assert call(server, model, 9, 1, "e") == (200, 2)


def test_an_idle_sequence_is_over_and_its_client_is_told(server: Server) -> None:
    assert call(server, "brief", 1, 1, "s") == (200, 1)
    waiting = Call(server, "brief", 2, 1, "se")
    assert waiting.result() == (200, 1), "it has got the slot"
    status, error = call(server, "brief", 1, 1)
    assert status == 400
    assert error["error"].endswith("of the sequence: it had no request for 0.3 s, and is over")


def test_a_failure_in_a_sequence_is_that_request_alone(server: Server) -> None:
    assert call(server, "sums", 1, 4, "s") == (200, 4)
    assert call(server, "sums", 1, -1)[0] == 500
    assert call(server, "sums", 1, 1, "e") == (200, 5)
    assert call(server, "sums", 1, -1, "s")[0] == 500
    assert call(server, "sums", 1, 1)[0] == 400, "its start has failed"


@pytest.mark.fault("F71")
def test_a_worker_that_dies_takes_the_states_of_its_sequences_and_every_client_is_told(server: Server) -> None:
    before = settled(server)
    with Bystander(server, BYSTANDER):
        for number in (31, 32, "33"):
            assert call(server, "sums", number, 1, "s") == (200, 1)
        held = Call(server, "sums", 31, HOLD)
        eventually(lambda: server.gauge("mmsup_requests_open", model="sums") == 1, "it runs")
        queued = Call(server, "sums", 32, 1)
        eventually(lambda: server.gauge("mmsup_requests_open", model="sums") == 2, "it waits")
        os.kill(server.pid("sums"), signal.SIGKILL)
        status, error = held.result()
        assert (status, error["code"], error["retryable"]) == (503, "worker_crashed", False)
        assert error["error"].endswith("the state of sequence 31 is lost with it: start the sequence again")
        for status, error in (queued.result(), *(call(server, "sums", number, 1) for number in (31, 32, "33") * 2)):
            assert (status, error["code"], error["retryable"]) == (503, "sequence_lost", False), error
            assert "SIGKILL" in error["error"]
            assert error["error"].endswith("start the sequence again")
        assert call(server, "sums", "33", 7, "s") == (200, 7)
        assert call(server, "sums", "33", 1, "e") == (200, 8)
    assert_clean(before, server)


@pytest.mark.fault("F72")
def test_a_gateway_that_dies_ends_no_sequence(server: Server) -> None:
    before = settled(server)
    for number in (41, 42):
        assert call(server, "pair", number, 1, "s") == (200, 1)
    with Bystander(server, BYSTANDER, may_be_cut=True):
        for each in server.status()["gateways"]:
            os.kill(each["pid"], signal.SIGKILL)
            eventually(lambda each=each: each["pid"] not in _gateways(server), "another one is there")  # type: ignore[misc]
        for number in (41, 42):
            assert call(server, "pair", number, 1) == (200, 2)
            assert call(server, "pair", number, 1, "e") == (200, 3)
    assert_clean(before, server)


def _gateways(server: Server) -> list[int]:
    found: list[Json] = server.status()["gateways"]
    pids = [each["pid"] for each in found]
    return [0] if None in pids else pids


@pytest.mark.fault("F73")
def test_a_controller_that_dies_ends_no_sequence(server: Server) -> None:
    before = settled(server)
    old = server.status()["brain"]["pid"]
    assert call(server, "sums", 51, 1, "s") == (200, 1)
    with Bystander(server, BYSTANDER):
        os.kill(old, signal.SIGKILL)
        assert call(server, "sums", 51, 1) == (200, 2)
        eventually(lambda: server.status()["brain"]["pid"] != old, "another controller")
        assert call(server, "sums", 51, 1, "e") == (200, 3)
    assert_clean(before, server)


@pytest.mark.fault("F71")
def test_a_live_sequence_ends_where_it_began_when_its_model_is_loaded_anew(server: Server) -> None:
    write_sums(server.repository, "replaced", deadline="2s")
    server.ctl("load", name="replaced")
    for number in (61, 62):
        assert call(server, "replaced", number, 1, "s") == (200, 1)
    (server.repository / "replaced" / "1" / "model.py").write_text(CODE.replace("FIRST", "100"))
    server.ctl("load", name="replaced")
    assert call(server, "replaced", 63, 1, "s") == (200, 101)
    assert call(server, "replaced", 61, 1) == (200, 2), "the old worker has it"
    assert call(server, "replaced", 61, 1, "e") == (200, 3)
    began = time.monotonic()
    eventually(lambda: len(server.pids("replaced")) == 1, "the old worker has waited long enough for the other one")
    assert time.monotonic() - began < 2.0
    status, error = call(server, "replaced", 62, 1)
    assert (status, error["code"]) == (503, "sequence_lost")
    assert "its worker was stopped or replaced" in error["error"]
    assert call(server, "replaced", 63, 1, "e") == (200, 102)
    server.ctl("unload", name="replaced")
